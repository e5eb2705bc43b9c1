from __future__ import annotations

from pathlib import Path

import pytest

from smsff.callbacks.loggers import wandb_logged_in, wandb_logger


@pytest.fixture(autouse=True)
def _nobody_logged_in(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("WANDB_API_KEY", "WANDB_MODE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))


def test_a_key_in_the_environment_or_in_netrc_counts_as_logged_in(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    assert not wandb_logged_in()
    (tmp_path / "netrc").write_text("machine api.wandb.ai login user password secret\n")
    assert wandb_logged_in()
    (tmp_path / "netrc").write_text("machine example.org login user password secret\n")
    assert not wandb_logged_in()
    monkeypatch.setenv("WANDB_API_KEY", "x")
    assert wandb_logged_in()


def test_without_a_login_the_logger_is_offline(tmp_path: Path) -> None:
    pytest.importorskip("wandb")
    logger = wandb_logger(save_dir=tmp_path / "run")
    assert logger._offline is True
    assert logger._project == "smsff"
