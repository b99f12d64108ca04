"""Confidence filtering keeps about the share asked for, the most confident ones."""

import torch

from semires.refine.filtering import ConfidenceFilter


def logits(margins: torch.Tensor) -> torch.Tensor:
    """Samples whose two logits differ by a margin everywhere, (B,2,4,4)."""
    foreground = margins.view(-1, 1, 1).expand(-1, 4, 4)
    return torch.stack([torch.zeros_like(foreground), foreground], dim=1)


def test_the_least_confident_go():
    keep = ConfidenceFilter(0.75)
    kept = keep(logits(torch.tensor([0.1, 3.0, 2.0, 4.0])))
    assert kept.tolist() == [False, True, True, True]


def test_the_share_holds_over_a_stream():
    torch.manual_seed(0)
    keep = ConfidenceFilter(0.95)
    kept = torch.cat([keep(logits(torch.randn(8) * 3)) for _ in range(300)])
    assert abs(kept.float().mean().item() - 0.95) < 0.02


def test_the_window_is_state_that_a_checkpoint_carries():
    first, second = ConfidenceFilter(0.5), ConfidenceFilter(0.5)
    first(logits(torch.tensor([1.0, 2.0, 3.0, 4.0])))
    second.load_state_dict(first.state_dict())
    batch = logits(torch.tensor([2.5, 0.5]))
    assert first(batch).tolist() == second(batch).tolist() == [True, False]


def test_keeping_all_keeps_all():
    assert ConfidenceFilter(1.0)(logits(torch.zeros(3))).all()
