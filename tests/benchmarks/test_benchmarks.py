"""The benchmarks of speed and memory: their arithmetic, and that each of them runs and writes what it promises."""

from __future__ import annotations

import importlib
import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from test_config import composed

from smsff.config.check import check_config

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "benchmarks"))

run_all, timing, train_step, transformer_net = map(
    importlib.import_module, ("run_all", "timing", "train_step", "transformer_net")
)


@pytest.fixture(autouse=True)
def _threads() -> Any:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def test_candidates_take_turns_and_the_first_turn_does_not_count() -> None:
    calls: list[str] = []
    candidates = {name: (lambda name=name: calls.append(name)) for name in "abc"}
    turns = timing.take_turns(candidates, turns=5, threads=1)
    assert len(turns) == 5
    assert [calls[i : i + 3] for i in range(0, 9, 3)] == [list("abc"), list("bca"), list("cab")]
    assert all(turn.keys() == set("abc") for turn in turns)


def test_a_ratio_is_one_of_each_turn() -> None:
    turns = [{"slow": 4.0, "fast": 2.0}, {"slow": 9.0, "fast": 3.0}, {"slow": 40.0, "fast": 10.0}]
    assert timing.ratio(turns, "slow", "fast") == {"median": 3.0, "min": 2.0, "max": 4.0}


def test_the_clock_of_one_thread_leaves_out_what_others_compute() -> None:
    assert timing.clock(1, "cpu")[0].startswith("CPU time")
    assert timing.clock(2, "cpu")[0] == timing.clock(1, "cuda")[0] == "wall clock"


def test_exponent_of_a_power() -> None:
    assert timing.exponent([1, 2, 4, 8], [3 * n**1.5 for n in (1, 2, 4, 8)]) == pytest.approx(1.5)


def test_too_few_turns_are_refused() -> None:
    with pytest.raises(SystemExit):
        timing.arguments(timing.parser("x"), ["--turns", "4"])


def test_the_other_network_is_the_published_one() -> None:
    network = transformer_net.TransformerNet()
    assert sum(p.numel() for p in network.parameters()) == 1_679_235
    assert network(torch.zeros(1, 3, 16, 24)).shape == (1, 3, 16, 24)


@pytest.mark.parametrize("row", train_step.LADDER.values(), ids=train_step.LADDER)
def test_every_row_of_the_ladder_is_a_configuration(row: tuple[str, ...]) -> None:
    check_config(composed(*row))


def test_stages_add_little_arithmetic_and_save_memory() -> None:
    found = importlib.import_module("generators").counted(4096)
    whole, staged = found["whole"], found["in stages"]
    assert whole["gmac_for_256_x_256"] < 5.8
    assert staged["gmac_for_256_x_256"] < 1.05 * whole["gmac_for_256_x_256"]
    assert staged["gigabytes"] < 0.5 * whole["gigabytes"]


def test_memory_of_the_process_after_one_picture(monkeypatch: pytest.MonkeyPatch) -> None:
    generators = importlib.import_module("generators")
    for set_by_hand in (False, True):
        if set_by_hand:
            monkeypatch.setenv("MALLOC_ARENA_MAX", "4")
            generators.glibc.cache_clear()
        found = generators.main(["--resident", "40"])["resident"]
        assert found["size"] == 40
        assert 0.2 < found["gigabytes"] < 16
        assert not (set_by_hand and found["memory_stays"])
    generators.glibc.cache_clear()


def test_weights_in_memory_beside_the_reference() -> None:
    memory = importlib.import_module("memory")
    assert memory.reference(other_base=True) == pytest.approx(11.14, abs=0.01)
    assert memory.reference(other_base=False) == pytest.approx(7.70, abs=0.01)
    one = memory.ours("bfloat16", other_base=False, latent=True, checkpointing=True, mixed=True)
    assert one.frozen / 1e9 < memory.reference(other_base=False) / 3


QUICK = [
    "startup", "data_loading", "many_pictures", "train_step", "generators", "exports", "scaling", "mixed_adapters",
    "fidelity",
]  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("name", QUICK)
def test_each_runs_and_writes_its_figures(name: str, tmp_path: Path) -> None:
    out = tmp_path / f"{name}.json"
    report = importlib.import_module(name).main(["--quick", "--out", str(out)])
    assert json.loads(out.read_text()) == report
    assert report["threads"] == 1
    assert report["quick"] is True


@pytest.mark.slow
def test_what_is_compiled_computes_the_same_in_one_graph_for_each_state_of_the_adapters() -> None:
    found = importlib.import_module("compiled").main(["--quick"])["results"]
    graphs = {"scores, neither (3 + 1)": 3, "scores, neither, speed=fast (2 + 1)": 2}
    for name, row in found.items():
        assert not row["graph_breaks"]
        assert row["graphs"] == graphs.get(name, 1)
        assert row["first_losses"]["compiled"] == pytest.approx(row["first_losses"]["eager"], rel=1e-2)


@pytest.mark.slow
def test_a_network_in_16_bits_launches_hardly_more_kernels_on_a_gpu_than_in_32() -> None:
    rows = importlib.import_module("launches").main(["--quick"])["rows"]
    for score in ("base", "style", "fake"):
        full, mixed, ours = (row for name, row in rows.items() if name.startswith(score))
        assert ours["kernels"] < 1.2 * full["kernels"] < mixed["kernels"]
        assert ours["casts"] < 150 < mixed["casts"]


@pytest.mark.slow
def test_the_benchmark_of_a_gpu_runs_on_a_cpu(tmp_path: Path) -> None:
    gpu, out = importlib.import_module("gpu"), tmp_path / "gpu.json"
    report = gpu.main(["--quick", "--only", "per-image", "feed-forward", "forecast", "--out", str(out)])
    assert json.loads(out.read_text()) == report
    rows = {row["row"]: row for row in report["rows"]}
    assert not [row for row in rows.values() if "error" in row or "skipped" in row]
    for name in (gpu.REFERENCE, *gpu.BARS):
        assert rows[f"per image, {name}"]["times_faster"]["median"] > 0
    assert rows[f"memory, per image, {gpu.FASTEST}"]["passes"] == {"forward": 2, "backward": 1}
    assert rows["feed-forward, batch 2"]["images_per_second"]["median"] > 0
    assert gpu.torch.get_float32_matmul_precision() == gpu.DEFAULT_PRODUCTS


def test_rows_of_a_gpu_are_written_one_by_one_and_a_failure_is_a_row(tmp_path: Path) -> None:
    gpu, out = importlib.import_module("gpu"), tmp_path / "gpu.json"
    report = gpu.Report(gpu.argparse.Namespace(out=out, seconds=1e9), {"device": "cpu"})
    report.add("first", x=1)
    assert report.attempt("second", lambda: 1 // 0) is None
    report.args.seconds = 0
    assert report.attempt("third", lambda: report.add("third", x=3)) is None
    rows = json.loads(out.read_text())["rows"]
    assert [row["row"] for row in rows] == ["first", "second", "third"]
    assert rows[1]["error"].startswith("ZeroDivisionError")
    assert rows[2]["skipped"]
    assert report.figure("first", "x") == 1


def test_the_iteration_of_the_reference_is_counted_and_that_of_ours_is_as_it_says(tmp_path: Path) -> None:
    report = train_step.main(["--quick", "--out", str(tmp_path / "x.json")])
    rows = report["results"][0]["rows"]
    for name, row in rows.items():
        forward, backward = name.rpartition("(")[2].rstrip(")").split(" + ")
        assert row["passes"] == {"forward": int(forward), "backward": int(backward)}
        assert row["times_faster"]["median"] > 0


def test_what_make_bench_runs_is_there() -> None:
    assert all((ROOT / "benchmarks" / f"{name}.py").is_file() for name in run_all.NAMES)
    with pytest.raises(SystemExit):
        run_all.main(["--only", "nothing"])
