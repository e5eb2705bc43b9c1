from __future__ import annotations

import http.server
import threading
from pathlib import Path

import pytest

from smsff.training.callbacks.loggers import tolerant, unreachable, wandb_logged_in, wandb_logger
from smsff.training.callbacks.table_log import TableLogger


@pytest.fixture(autouse=True)
def _nobody_logged_in(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("WANDB_API_KEY", "WANDB_MODE", "WANDB_BASE_URL", "http_proxy", "https_proxy"):
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


def test_a_server_that_answers_anything_is_reachable_and_one_that_does_not_is_named() -> None:
    class Refuse(http.server.BaseHTTPRequestHandler):
        def do_HEAD(self) -> None:
            self.send_error(403)

        def log_message(self, *_: object) -> None:
            pass

    with http.server.HTTPServer(("127.0.0.1", 0), Refuse) as server:
        threading.Thread(target=server.handle_request, daemon=True).start()
        url = f"http://127.0.0.1:{server.server_port}"
        assert unreachable(url) is None
        assert "cannot be reached" in str(unreachable(url, seconds=0.2))  # it listens and is silent now
    assert "Connection refused" in str(unreachable(url))
    assert "cannot be reached" in str(unreachable("nonsense"))


def test_an_unreachable_server_makes_the_logger_offline(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_API_KEY", "x")
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:1")
    assert wandb_logger(save_dir=tmp_path / "run")._offline is True
    assert "wandb sync" in caplog.text


def test_a_step_is_logged_once_and_other_figures_of_it_too(tmp_path: Path) -> None:
    logger = TableLogger(save_dir=str(tmp_path))
    tolerant(logger)
    for metrics, step in (({"a": 1.0, "b": 2.0}, 0), ({"a": 1.0, "b": 2.0}, 0), ({"val": 3.0}, 0), ({"a": 1.0}, 1)):
        logger.log_metrics(metrics, step)
        logger.save()
    rows = (tmp_path / "csv" / "version_0" / "metrics.csv").read_text().splitlines()
    assert rows == ["a,b,step,val", "1.0,2.0,0,", ",,0,3.0", "1.0,,1,"]
