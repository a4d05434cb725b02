"""Fresh memory that holds NaN, so that an element which a kernel does not write is seen."""

import pytest
import torch


def fill_with_nan(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let `torch.empty` and `torch.empty_like` give NaN in floating dtypes until the test ends."""

    def filled(make):
        def poisoned(*args, **kwargs):
            made = make(*args, **kwargs)
            return made.fill_(torch.nan) if made.is_floating_point() else made

        return poisoned

    monkeypatch.setattr(torch, "empty", filled(torch.empty))
    monkeypatch.setattr(torch, "empty_like", filled(torch.empty_like))
