"""Counts per atom: right, compact, cached, rebuilt when damaged."""

import io

import numpy as np
import pytest

from semires.errors import CorruptCacheError, DataError
from semires.files import npz_bytes, sha256_bytes
from semires.refine.partition import Partition
from semires.refine.strategies import PROBABILITY_STEPS
from semires.tuning.counts import PseudoLabel, cached, count, halves, load, save


def rectangle(top, left, bottom, right, size=8):
    mask = np.zeros((size, size), bool)
    mask[top:bottom, left:right] = True
    return mask


def example():
    """Two images; the first has two overlapping proposals, the second none."""
    proposals = np.stack([rectangle(0, 0, 4, 4), rectangle(2, 2, 6, 6)])
    partitions = {
        7: Partition.from_masks(proposals),
        9: Partition.from_masks(np.zeros((0, 8, 8), bool)),
    }
    labels = [
        PseudoLabel(70, 7, 0, rectangle(0, 0, 4, 2), rectangle(0, 0, 4, 4)),
        PseudoLabel(90, 9, 0, rectangle(0, 0, 8, 8), rectangle(0, 0, 1, 1), None),
        PseudoLabel(71, 7, 1, rectangle(2, 2, 6, 6), rectangle(3, 3, 8, 8)),
    ]
    return labels, partitions


def test_counts_of_known_rectangles():
    counts = count(*example())
    assert counts.ref_ids.tolist() == [70, 90, 71]
    assert counts.image_ids.tolist() == [7, 9, 7]
    assert counts.sentences.tolist() == [0, 0, 1]
    assert counts.image_index.tolist() == [0, 1, 0]
    assert np.add.reduceat(counts.overlap, counts.offsets[:-1]).tolist() == [8, 1, 9]
    assert counts.probability.tolist() == (counts.label * PROBABILITY_STEPS).tolist()
    assert counts.reliability.sum(0).tolist() == [3 * 64, 3 * 64, 3 * 64 - 8 - 63 - 23]
    members = counts.members()
    assert [m.shape[0] for m in members] == [2, 0]
    first, second, third = (
        slice(a, b) for a, b in zip(counts.offsets[:-1], counts.offsets[1:], strict=True)
    )
    areas = members[0] @ counts.area[first]
    assert areas.tolist() == [16, 16]
    assert (members[0] @ counts.label[first]).tolist() == [8, 0]
    assert (members[0] @ counts.truth[first]).tolist() == [16, 4]
    assert (members[0] @ counts.label[third]).tolist() == [4, 16]
    assert (members[0] @ counts.truth[third]).tolist() == [1, 9]
    for part in (first, second, third):
        assert counts.area[part].sum() == 64
    assert counts.label[second].sum() == 64
    assert counts.truth[second].sum() == 1


def test_the_probability_is_summed_in_every_atom():
    labels, partitions = example()
    probability = np.random.default_rng(0).random((8, 8)).astype(np.float32)
    counts = count([labels[0]._replace(probability=probability)], partitions)
    steps = np.round(probability.astype(np.float64) * PROBABILITY_STEPS)
    atoms = partitions[7].atoms
    assert counts.probability.tolist() == [int(steps[atoms == a].sum()) for a in range(4)]


def test_partition_is_resized_to_the_labels():
    labels, partitions = example()
    large = {i: p.resize(16, 16) for i, p in partitions.items()}
    for name in ("area", "label", "truth"):
        a, b = (getattr(count(labels, p), name).tolist() for p in (partitions, large))
        assert a == b


def test_an_image_may_come_back_after_many_others():
    rng = np.random.default_rng(0)
    masks = rng.random((150, 3, 8, 8)) < 0.4
    partitions = {i: Partition.from_masks(m) for i, m in enumerate(masks)}
    label, truth = rectangle(0, 0, 5, 5), rectangle(1, 1, 6, 6)
    ids = [*range(150), *range(150)]
    counts = count([PseudoLabel(i, i, 0, label, truth) for i in ids], partitions)
    assert len(counts.members()) == 150
    half = len(counts.area) // 2
    assert counts.area[:half].tolist() == counts.area[half:].tolist()
    assert counts.image_index.tolist() == ids


def test_no_reference_is_refused():
    with pytest.raises(DataError, match="no reference to count"):
        count([], {})


def test_cache_gives_back_what_was_counted(tmp_path):
    path, made = tmp_path / "work" / "counts.npz", []

    def make():
        made.append(1)
        return count(*example())

    first = cached(path, "key", make)
    second = cached(path, "key", make)
    assert len(made) == 1
    for name, array in vars(first).items():
        assert getattr(second, name).dtype == array.dtype
        assert np.array_equal(getattr(second, name), array), name


@pytest.mark.parametrize("damage", ["flip", "cut", "empty", "other key"])
def test_damaged_cache_is_counted_again(tmp_path, damage, capsys):
    path, key = tmp_path / "counts.npz", "key"
    counts = count(*example())
    save(counts, path, key)
    data = bytearray(path.read_bytes())
    if damage == "flip":
        data[len(data) // 2] ^= 1
    path.write_bytes({"cut": data[: len(data) // 2], "empty": b""}.get(damage, bytes(data)))
    if damage == "other key":
        key = "another"
    with pytest.raises(CorruptCacheError, match=r"counts\.npz"):
        load(path, key)
    again = cached(path, key, lambda: count(*example()))
    assert np.array_equal(again.truth, counts.truth)
    assert "counting again" in capsys.readouterr().out
    assert np.array_equal(load(path, key).truth, counts.truth)


def test_halves_part_the_images():
    ids = np.repeat(np.arange(31), 3)
    seen, held_out = halves(ids, seed=0)
    assert np.array_equal(seen, ~held_out)
    assert len(np.unique(ids[seen])) == 16
    assert not set(ids[seen]) & set(ids[held_out])
    assert np.array_equal(halves(ids, seed=0)[0], seen)
    assert not np.array_equal(halves(ids, seed=1)[0], seen)
    with pytest.raises(DataError, match="at least two"):
        halves(np.zeros(5, int), seed=0)


def test_the_bytes_of_an_npz_file_depend_on_its_content_only():
    # a constant, because the bytes must stay equal from one version of Python to the next
    data = npz_bytes({"a": np.arange(3), "b": np.array(["x", "yé"])})
    assert sha256_bytes(data) == "4f7d316d6522b11ee259487e94793428578d7cba93e37afc148f7ea2db30c12e"
    with np.load(io.BytesIO(data), allow_pickle=False) as arrays:
        assert arrays["a"].tolist() == [0, 1, 2]
        assert arrays["b"].tolist() == ["x", "yé"]
