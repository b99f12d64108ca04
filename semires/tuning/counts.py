"""Reduce pseudo-labels to counts per atom, the only input of a threshold search.

In: the burn-in teacher's hard pseudo-label ``c``, its foreground probability and the ground truth
``g`` of each reference, (H,W), and its image's Partition at the same size. Out: for every atom its
area, how many pixels of ``c``, of ``g`` and of both lie in it and the sum of the probability,
packed flat over all references, and each image's membership matrix. They are made once per teacher
and proposals, and cached in the work folder.
"""

from __future__ import annotations

import functools
import io
import zipfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from semires.config.resolve import proposals_of, source_of
from semires.errors import CorruptCacheError, DataError
from semires.evaluation.calibration import BINS, reliability
from semires.files import fingerprint, npz_bytes, read_json, sha256_bytes, sha256_file, write_bytes
from semires.progress import progress
from semires.refine.partition import Partition
from semires.refine.strategies import PROBABILITY_STEPS, rounded
from semires.runs import layout
from semires.runs.key import RunKey

if TYPE_CHECKING:
    import pandas as pd

    from semires.config.schema import Params
    from semires.models import SegmentationModel
    from semires.refine.refiner import Promptable
    from semires.training.context import RunContext

Ints = NDArray[np.int64]
Bools = NDArray[np.bool_]

FORMAT = 2  # raised when the content of the cached file changes its meaning
DIGEST_BYTES = 64
FOLD_SECTIONS = ("loss", "optimizer", "burn_in")  # of the teachers of `tune.on: labelled`


class PseudoLabel(NamedTuple):
    """One expression's pseudo-label and ground truth, bool (H,W), H and W those of the model.

    ``probability``: the teacher's foreground probability, float (H,W); None stands for a teacher
    that is certain of its label.
    """

    ref_id: int
    image_id: int
    sentence: int
    label: Bools
    truth: Bools
    probability: NDArray[np.floating] | None = None


@dataclass(frozen=True)
class Counts:
    """Counts of R pseudo-labels on I images, packed flat.

    Attributes:
        ref_ids: (R,) int64; ``image_ids`` and ``sentences`` (R,) likewise.
        image_index: (R,) which of the I images. If SAM is prompted, every reference has its own.
        offsets: (R+1,) where each reference's atoms begin in the next five.
        area: pixels of every atom; ``label`` those of the pseudo-label in it, ``truth`` those of
            the ground truth, ``overlap`` those of both.
        probability: the sum of the probability over every atom, times ``PROBABILITY_STEPS``.
        reliability: (BINS,3) float64, see :func:`semires.evaluation.calibration.reliability`.
        shapes: (I,2) proposals and atoms of every image.
        bits: all membership matrices in turn, row by row, eight to a byte.
    """

    ref_ids: Ints
    image_ids: Ints
    sentences: Ints
    image_index: Ints
    offsets: Ints
    area: Ints
    label: Ints
    truth: Ints
    overlap: Ints
    probability: Ints
    reliability: NDArray[np.float64]
    shapes: Ints
    bits: NDArray[np.uint8]

    def __len__(self) -> int:
        return len(self.ref_ids)

    def take(self, chosen: Bools) -> Counts:
        """The counts of the pseudo-labels where ``chosen`` (R,) is true; all of ``reliability``."""
        lengths = np.diff(self.offsets)
        atoms = np.repeat(chosen, lengths)
        changed = {"offsets": np.concatenate([[0], np.cumsum(lengths[chosen])])}
        for name in ("ref_ids", "image_ids", "sentences", "image_index"):
            changed[name] = getattr(self, name)[chosen]
        for name in ("area", "label", "truth", "overlap", "probability"):
            changed[name] = getattr(self, name)[atoms]
        return replace(self, **changed)

    def members(self) -> list[Bools]:
        """The membership matrix, bool (N, n_atoms), of each of the I images."""
        sizes = (self.shapes[:, 0] * self.shapes[:, 1] + 7) // 8
        ends = np.cumsum(sizes)
        return [
            np.unpackbits(self.bits[end - size : end], count=int(n * atoms))
            .reshape(int(n), int(atoms))
            .astype(bool)
            for end, size, (n, atoms) in zip(ends, sizes, self.shapes, strict=True)
        ]


def count(labels: Iterable[PseudoLabel], partitions: Mapping[int, Partition] | Any) -> Counts:
    """Count atoms over all pseudo-labels.

    Args:
        labels: pseudo-labels; each of an image's shape is that of its resized partition.
        partitions: image id to Partition (a dict or a ProposalCache), at any size, or to an image
            that is prompted with each label.

    Raises:
        DataError: there is no pseudo-label.
    """

    @functools.lru_cache(maxsize=64)  # an image's references follow each other
    def resized(image_id: int, height: int, width: int) -> Partition | Promptable:
        found: Partition | Promptable = partitions[image_id].resize(height, width)
        return found

    places: dict[int, int] = {}
    shapes: list[tuple[int, ...]] = []
    bits: list[NDArray[np.uint8]] = []
    rows: list[tuple[int, int, int, int]] = []
    numbers: list[list[Ints]] = []
    bins = np.zeros((BINS, 3))
    for item in labels:
        probability = item.label if item.probability is None else item.probability
        probability = np.asarray(probability, dtype=np.float32)
        partition, place = resized(item.image_id, *item.label.shape), len(shapes)
        if isinstance(partition, Partition):
            place = places.setdefault(item.image_id, place)
        else:
            partition = partition.prompt(item.label, probability)
        if place == len(shapes):
            shapes.append(partition.members.shape)
            bits.append(np.packbits(partition.members))
        probability = rounded(probability)
        masks = (None, item.label, item.truth, item.label & item.truth)
        sums = partition.total(probability) * PROBABILITY_STEPS
        rows.append((item.ref_id, item.image_id, item.sentence, place))
        numbers.append([n.astype(np.int64) for n in (*map(partition.count, masks), sums)])
        bins += reliability(probability, item.truth)
    if not rows:
        raise DataError("no reference to count: the part of the data set is empty")
    refs = np.asarray(rows, dtype=np.int64).T.copy()
    area, label, truth, overlap, probabilities = map(np.concatenate, zip(*numbers, strict=True))
    return Counts(
        ref_ids=refs[0],
        image_ids=refs[1],
        sentences=refs[2],
        image_index=refs[3],
        offsets=np.cumsum([0, *(len(part[0]) for part in numbers)], dtype=np.int64),
        area=area,
        label=label,
        truth=truth,
        overlap=overlap,
        probability=probabilities,
        reliability=bins,
        shapes=np.asarray(shapes, dtype=np.int64),
        bits=np.concatenate(bits),
    )


def save(counts: Counts, path: Path, made_from: str) -> None:
    """Write counts whole or not at all, with a digest over them and their origin."""
    data = npz_bytes({field.name: getattr(counts, field.name) for field in fields(counts)})
    write_bytes(path, sha256_bytes(made_from.encode() + data).encode() + data)


def load(path: Path, made_from: str) -> Counts:
    """Read counts.

    Args:
        path: the file.
        made_from: the digest of the inputs of the counts.

    Raises:
        CorruptCacheError: the file is damaged or was made from something else.
    """
    content = path.read_bytes()
    digest, data = content[:DIGEST_BYTES], content[DIGEST_BYTES:]
    if sha256_bytes(made_from.encode() + data).encode() != digest:
        raise CorruptCacheError(f"{path}: damaged counts")
    try:
        with np.load(io.BytesIO(data), allow_pickle=False) as arrays:
            return Counts(**{field.name: arrays[field.name] for field in fields(Counts)})
    except (KeyError, ValueError, OSError, zipfile.BadZipFile) as error:
        raise CorruptCacheError(f"{path}: damaged counts ({error})") from error


def cached(path: Path, made_from: str, make: Callable[[], Counts]) -> Counts:
    """The counts in ``path``, or new ones if the file is absent or damaged."""
    if path.exists():
        try:
            return load(path, made_from)
        except CorruptCacheError as error:
            print(f"{error}; counting again")
    counts = make()
    save(counts, path, made_from)
    return counts


def sources(params: Params, key: RunKey) -> dict[str, Any]:
    """The origin of the counts: digests of teacher, proposals and data, and the sample's settings.

    Raises:
        SemiresError: the burn-in or the proposals are missing; the text names the file.
    """
    burn_in = key.burn_in.folder
    teacher = burn_in / "model.safetensors"
    if not teacher.is_file():
        raise DataError(f"{teacher}: no such file; run the burn-in of {burn_in} first")
    folder = proposals_of(params, key)
    tables = sorted(layout.prepared(key.dataset).glob("*.parquet"))
    made_from = {
        "teacher": sha256_file(teacher),
        "proposals": str(read_json(folder / "manifest.json", sealed=True)["fingerprint"]),
        "data": fingerprint([sha256_file(path) for path in tables]),
        "sample": [params.data.model_dump(), params.model.model_dump()],
        "format": FORMAT,
    }
    if params.tune.on == "labelled":
        split = sha256_file(layout.split_file(key.dataset, key.fraction))
        settings = {name: getattr(params, name).model_dump() for name in FOLD_SECTIONS}
        made_from["folds"] = [params.tune.folds, params.tune.seed, split, settings]
    return made_from


def counts_path(params: Params, key: RunKey, kind: str, made_from: str) -> Path:
    """The cached file of counts; ``made_from`` is the digest of their inputs."""
    parts = key.folder.parts
    name = "-".join([kind, parts[1], parts[2], source_of(params, key), parts[4]])
    return layout.work(name, made_from) / "counts.npz"


def counts_of(params: Params, key: RunKey, part: str = "val", refs: int | None = None) -> Counts:
    """The counts of a part's references, from the cache or made by the run's burn-in teacher.

    Args:
        params: all parameters.
        key: the run; its burn-in is the teacher.
        part: ``val``, or ``unlabelled`` for the unlabelled part of train.
        refs: at most this many references, drawn by the run's seed; None means all.
    """
    from semires.proposals.cache import open_proposals

    open_proposals(params, key)  # complete and of these parameters, or an error
    on_val = params.model_copy(update={"tune": params.tune.model_copy(update={"on": "val"})})
    origin = sources(on_val, key)
    if part != "val":
        split = sha256_file(layout.split_file(key.dataset, key.fraction))
        origin = {**origin, "part": part, "split": split}
    made_from = fingerprint(origin if refs is None else {**origin, "refs": [refs, key.seed]})
    path = counts_path(params, key, "counts", made_from)

    def make() -> Counts:
        from semires.training.context import RunContext

        partitions = RunContext(params, key, ("data", "model")).partitions
        return count(labels_of(params, key, part, refs), partitions)

    return cached(path, made_from, make)


def labels_of(
    params: Params, key: RunKey, part: str = "val", refs: int | None = None
) -> Iterator[PseudoLabel]:
    """The burn-in teacher's pseudo-labels of a part; arguments as for :func:`counts_of`."""
    from semires.models.weights import load_weights
    from semires.training.context import RunContext

    context = RunContext(params, key, ("data", "model"))
    teacher = context.build_model()
    load_weights(teacher, context.burn_in_folder / "model.safetensors")
    table = context.unlabelled_refs if part == "unlabelled" else context.tables.part(part)
    return pseudo_labels(context, teacher, table, refs, context.fitted_temperature())


def pseudo_labels(
    context: RunContext,
    teacher: SegmentationModel,
    refs: pd.DataFrame,
    limit: int | None = None,
    temperature: float = 1.0,
) -> Iterator[PseudoLabel]:
    """A teacher's pseudo-labels of references: the first expression of each.

    The unit is the reference, counted once, as in the paper's Figure 6. The ground truth of
    unlabelled references is used for measurements only. With ``limit``, at most that many
    references are drawn by the run's seed. The probability is that of the logits divided by
    ``temperature``.
    """
    from semires.evaluation.corrections import sample_refs
    from semires.evaluation.evaluate import predict_masks
    from semires.refine.refiner import foreground

    params, dataset = context.params, context.labelled_dataset(refs)
    chosen = sample_refs(dataset, limit, context.key.seed)
    batches = predict_masks(
        teacher, dataset, params.evaluation.batch_size, context.group.device, chosen,
        precision=params.runtime.precision,
    )  # fmt: skip
    with progress(name="pseudo-labels", total=len(chosen), unit="reference") as bar:
        for batch, logits in batches:
            probability = foreground(logits / temperature)
            arrays = (logits.argmax(1).bool(), batch.mask.bool(), probability)
            masks = zip(*(array.cpu().numpy() for array in arrays), strict=True)
            for sample, each in zip(batch.indices, masks, strict=True):
                row = dataset.refs.iloc[int(dataset.ref_of[sample])]
                ids = int(row["ref_id"]), int(row["image_id"])
                yield PseudoLabel(*ids, 0, *each)
            bar.update(len(batch))


def halves(image_ids: Ints, seed: int) -> tuple[Bools, Bools]:
    """Masks (R,) of the references of two random halves of the images, drawn by seed.

    Trials use the first half, the larger one if the number is odd. The second half is held out.

    Raises:
        DataError: there are fewer than two images.
    """
    images = np.unique(image_ids)
    if len(images) < 2:
        raise DataError("the threshold search halves the val images: it needs at least two")
    drawn = np.random.default_rng(seed).permutation(images)
    first = np.isin(image_ids, drawn[: (len(images) + 1) // 2])
    return first, ~first
