from __future__ import annotations

import subprocess
import sys
import textwrap
from collections import Counter
from pathlib import Path

import pytest
import torch
from network_files import write_pictures
from PIL import Image
from torch import Tensor, nn

from smsff.data.images import load_image
from smsff.errors import UserError
from smsff.metrics import evaluation, known_style
from smsff.metrics.clip import Clip
from smsff.metrics.evaluation import Evaluator, Networks, per_image
from smsff.metrics.frechet import FeatureSet, frechet_distance, kernel_distance
from smsff.metrics.pairs import Pair, pair_up


class Features(nn.Module):
    """Mean colours as features."""

    def forward(self, x: Tensor) -> Tensor:
        return x.mean((2, 3))


class Difference(nn.Module):
    """Mean absolute difference in place of LPIPS."""

    def forward(self, y: Tensor, x: Tensor) -> Tensor:
        return (y - x).abs().mean((1, 2, 3))


NAMES = [f"{i:02}.png" for i in range(11)]


@pytest.fixture
def folders(tmp_path: Path) -> Path:
    for i, folder in enumerate(("results", "content", "style", "truth")):
        write_pictures(tmp_path / folder, NAMES, first=100 * i, height=80, width=80)
    return tmp_path


def picture(path: Path) -> Tensor:
    return load_image(path)[None].float() / 255


def test_every_figure_is_that_of_the_single_pictures(folders: Path) -> None:
    networks = Networks(lpips=Difference(), art=Features(), reference=Features())
    evaluator = Evaluator(["ssim", "lpips", "artfid", "fid", "kid", "truth"], networks)
    evaluator.measure_pairs(pair_up(folders / "results", folders / "content", truth=folders / "truth").pairs)
    style = sorted((folders / "style").glob("*"))[:7]
    result = evaluator.finish(evaluator.measure_style(style))
    assert result.names == NAMES

    y, x, truth = ([picture(folders / f / name) for name in NAMES] for f in ("results", "content", "truth"))
    expected = [known_style.measure(*row) for row in zip(y, truth, x, strict=True)]
    for ours, theirs in {"psnr": "psnr", "ssim_truth": "ssim", "style_tone_free": "style_tone_free"}.items():
        assert result.figures[ours].value == pytest.approx(sum(row[theirs] for row in expected) / 11, rel=1e-5)
    ssim = torch.cat([known_style.ssim(a, b) for a, b in zip(y, x, strict=True)])
    assert result.columns["ssim"] == pytest.approx(ssim.tolist(), abs=1e-6)
    assert result.figures["ssim"].error == pytest.approx((ssim.double().std() / 11**0.5).item(), rel=1e-5)

    sets = [FeatureSet(width=3), FeatureSet(width=3)]
    for found, pictures in zip(sets, (y, [picture(path) for path in style]), strict=True):
        for one in pictures:
            found.update(one.mean((2, 3)))
    fid = result.figures["fid"]
    assert fid.value == pytest.approx(frechet_distance(*sets), rel=1e-5)
    assert (fid.count, fid.references) == (11, 7)
    assert result.figures["kid"].value == pytest.approx(kernel_distance(*sets)[0], rel=1e-4)
    lpips = result.figures["lpips"].value
    assert lpips == pytest.approx(sum((a - b).abs().mean().item() for a, b in zip(y, x, strict=True)) / 11, rel=1e-5)
    assert result.figures["artfid"].value == pytest.approx((1 + lpips) * (1 + result.figures["art_fid"].value))


def test_clip_and_pickscore_figures_are_those_of_their_formulas(folders: Path, clip_folder: Path) -> None:
    clip = Clip(clip_folder)
    write_pictures(folders / "rival", NAMES[:8], first=700, height=80, width=80)  # three are missing
    (folders / "content" / NAMES[0]).with_suffix(".txt").write_text("a {cat}")
    pairs = pair_up(folders / "results", folders / "content", rivals=[folders / "rival"]).pairs
    evaluator = Evaluator(["clip", "pickscore"], Networks(clip=clip, pickscore=clip), prompt="in oil, {caption}")
    evaluator.measure_pairs(pairs)
    style = sorted((folders / "style").glob("*"))[:4]
    figures = evaluator.finish(evaluator.measure_style(style)).figures

    y, x = (torch.cat([picture(folders / f / name) for name in NAMES]) for f in ("results", "content"))
    prompts = ["in oil, a {cat}", *["in oil"] * 10]
    ours, theirs = clip.embed_images(y), clip.embed_images(x)
    near = {"rel": 1e-4, "abs": 1e-5}
    assert figures["clip_content"].value == pytest.approx((ours * theirs).sum(1).mean().item(), **near)
    assert figures["clip_text"].value == pytest.approx((ours * clip.embed_texts(prompts)).sum(1).mean().item(), **near)
    of_style = torch.cat([clip.embed_images(picture(path)) for path in style])
    assert figures["clip_style"].value == pytest.approx((ours @ of_style.T).mean().item(), **near)
    scores = [clip.scores(p, prompts) for p in (y, x)]
    assert figures["pickscore"].value == pytest.approx(scores[0].mean().item(), **near)
    rival = clip.scores(torch.cat([picture(folders / "rival" / name) for name in NAMES[:8]]), prompts[:8])
    table = torch.stack([scores[0][:8], scores[1][:8], rival], dim=1)
    share = figures["pickscore_share"]
    assert share.count == 8
    assert share.value == pytest.approx(table.double().softmax(1)[:, 0].mean().item(), **near)
    wins = (table[:, :1] > table[:, 1:]).double().mean().item()
    assert figures["pickscore_win_rate"].value == pytest.approx(wins)
    rows = per_image(evaluator.result)
    assert rows[NAMES[0]]["pickscore_share"] is not None
    assert rows[NAMES[10]]["pickscore_share"] is None


def test_pictures_that_do_not_fit_are_left_out_by_name(folders: Path) -> None:
    Image.new("RGB", (80, 79)).save(folders / "results" / "00.png")
    (folders / "content" / "01.png").write_bytes(b"no picture")
    for folder in ("results", "content"):
        Image.new("RGB", (74, 90)).save(folders / folder / "02.png")
    (folders / "style" / "00.png").write_bytes(b"")
    evaluator = Evaluator(["artfid"], Networks(lpips=Difference(), art=Features()))
    evaluator.measure_pairs(pair_up(folders / "results", folders / "content").pairs)
    style = sorted((folders / "style").glob("*"))
    result = evaluator.finish(evaluator.measure_style(style))
    assert "the result has 80 x 79 pixels, its content 80 x 80" in result.left_out["00.png"]
    assert "cannot be read as an image" in result.left_out["01.png"]
    assert "74 x 90 pixels are too few for artfid, which needs 75" in result.left_out["02.png"]
    assert f"{style[0]} (style)" in result.left_out
    assert result.names == NAMES[3:]
    assert (result.figures["artfid"].count, result.figures["artfid"].references) == (8, 10)


def test_nothing_measurable_is_an_error(folders: Path) -> None:
    evaluator = Evaluator(["ssim"], Networks())
    pair = Pair(name="a", result=folders / "results" / "00.png", content=folders / "nowhere.png")
    evaluator.measure_pairs([pair])
    with pytest.raises(UserError, match="none of the 1 pairs could be measured; the first, a: "):
        evaluator.finish(0)
    evaluator = Evaluator(["fid"], Networks(reference=Features()))
    evaluator.measure_pairs(pair_up(folders / "results", folders / "content").pairs)
    with pytest.raises(UserError, match="--style: none of its pictures could be used"):
        evaluator.finish(0)


def test_batches_hold_pictures_of_one_size_and_stay_small(folders: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for folder in ("results", "content"):
        Image.new("RGB", (60, 50)).save(folders / folder / "04.png")
    shapes: list[tuple[int, ...]] = []

    class Spy(Difference):
        def forward(self, y: Tensor, x: Tensor) -> Tensor:
            shapes.append(tuple(y.shape))
            return super().forward(y, x)

    pairs = pair_up(folders / "results", folders / "content").pairs
    Evaluator(["lpips"], Networks(lpips=Spy())).measure_pairs(pairs)
    assert [(s[0], s[3]) for s in shapes] == [(4, 80), (1, 60), (6, 80)]
    shapes.clear()
    monkeypatch.setattr(evaluation, "BATCH_PIXELS", 3 * 80 * 80)
    Evaluator(["lpips"], Networks(lpips=Spy())).measure_pairs(pairs)
    assert max(s[0] for s in shapes) == 3


def test_every_picture_is_read_once_for_each_pair(folders: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read: Counter[Path] = Counter()

    def load(path: Path) -> Tensor:
        read[path] += 1
        return load_image(path)

    monkeypatch.setattr(evaluation, "load_image", load)
    evaluator = Evaluator(["lpips", "fid", "kid", "ssim"], Networks(lpips=Difference(), reference=Features()))
    evaluator.measure_pairs(pair_up(folders / "results", folders / "content").pairs)
    evaluator.measure_style(sorted((folders / "style").glob("*")))
    assert set(read.values()) == {1}
    assert len(read) == 3 * len(NAMES)


@pytest.mark.slow
def test_memory_does_not_grow_with_the_number_of_pairs(tmp_path: Path) -> None:
    """Features of 2048 numbers: a thousand of them more would be 16 MB each for FID's sums if they were kept."""
    code = """
        import resource, sys
        import torch
        from pathlib import Path
        from smsff.metrics.evaluation import Evaluator, Networks
        from smsff.metrics.pairs import Pair

        class Features(torch.nn.Module):
            def forward(self, x):
                return x.flatten(1).repeat(1, 3)[:, :2048]

        def peak():
            return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024

        folder = Path(sys.argv[1])
        pairs = [Pair(name=str(i), result=folder / f"{i % 50}.png", content=folder / "0.png") for i in range(1000)]
        evaluator = Evaluator(["ssim", "fid"], Networks(reference=Features()))
        evaluator.measure_pairs(pairs[:200])
        before = peak()
        evaluator.measure_pairs(pairs[200:])
        print(len(evaluator.result.names), peak() - before)
    """
    write_pictures(tmp_path, [f"{i}.png" for i in range(50)], height=32, width=32)
    out = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code), str(tmp_path)], capture_output=True, text=True, check=True
    )
    count, grown = out.stdout.split()
    assert count == "1000"
    assert float(grown) < 20  # MB; 800 kept features of 8 kB are 6.5
