"""The study of which results people prefer: one page that asks, and the count of its answers.

The page knows the methods by codes alone; a key file beside it says which code is which. Everybody is asked in an own
random order, and each comparison in two orders of the pictures, one the reverse of the other.
"""

from __future__ import annotations

import itertools
import json
import math
import secrets
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from smsff.atomic import write_atomically
from smsff.data.images import find_images, printable
from smsff.errors import UserError
from smsff.metrics.pairs import PictureFolder
from smsff.report.comparison import FILE
from smsff.report.content import Source, spread
from smsff.report.html import content_policy
from smsff.report.pictures import embed

QUESTIONS = {
    "style": "Which picture shows the style best?",
    "content": "Which picture keeps the content of the photo best?",
    "overall": "Which picture do you prefer overall?",
}
PAGE = Path(__file__).parent / "page"
LIMIT = 40_000_000
"""Most bytes of all pictures of a page."""
MOST = 9
"""Pictures of a comparison: as many as there are digits to choose with."""
STYLE_PICTURES = 3
Z = 1.959963984540054
"""Quantile of the normal distribution for intervals of 95 %."""

Pictures = dict[str, dict[str, Path]]  # method -> photo -> file


def of_comparison(folder: Path) -> tuple[Pictures, dict[str, Path]]:
    """The pictures of the methods of ``smsff compare`` (of the first seed), and the photos."""
    content = json.loads((folder / FILE).read_text(encoding="utf-8"))
    photos: dict[str, Path] = {}
    found: Pictures = {}
    for record in content["records"]:
        if not content["rows"][record["row"]]["control"]:
            name = f"{record['style']}, {record['photo']}"
            photos[name] = folder / content["photos"][record["photo"]]
            found.setdefault(record["row"], {}).setdefault(name, folder / record["picture"])
    return found, photos


def of_folders(folders: Sequence[Path], content: Path) -> tuple[Pictures, dict[str, Path]]:
    """The pictures of folders of results, named like their folders, and the photos of the same names."""
    names = [folder.resolve().name for folder in folders]
    if twice := [name for name, count in Counter(names).items() if count > 1]:
        raise UserError(f"{printable(twice[0])}: two folders have this name, and methods are named by their folders")
    photos = PictureFolder(content, "--content")
    opened = {name: PictureFolder(folder, name) for name, folder in zip(names, folders, strict=True)}
    return (
        {
            name: {photo: path for photo in photos.by_name if (path := folder.get(photo))}
            for name, folder in opened.items()
        },
        photos.by_name,
    )


def make(
    pictures: Pictures, photos: Mapping[str, Path], out: Path, *, style: Path | None, pairs: bool, most: int | None
) -> Path:
    """Write the page, and beside it the key; returns the file of the key.

    A photo that a method lacks is not asked about. `style`: folder of pictures that show the style; `pairs`: two
    methods at a time; `most`: comparisons that one person is asked about, each in two orders.
    """
    common = [photo for photo in photos if all(photo in files for files in pictures.values())]
    if len(pictures) < 2 or not common:
        raise UserError(f"a study needs two methods and a photo that all have; there are {len(pictures)} methods and "
                        f"{len(common)} such photos")  # fmt: skip
    if len(pictures) > MOST and not pairs:
        raise UserError(f"{len(pictures)} methods are too many to be shown at once; ask with --pairs")
    codes = {method: secrets.token_hex(4) for method in pictures}
    sets = list(itertools.combinations(codes.values(), 2)) if pairs else [tuple(codes.values())]
    shown = find_images(style) if style else []
    shown = [shown[i] for i in spread(len(shown), STYLE_PICTURES)]
    sources = {path: Source(path=path, alt="") for path in shown}
    for photo in common:
        for path in (photos[photo], *(files[photo] for files in pictures.values())):
            sources[path] = Source(path=path, alt="")
    found = embed(sources.values(), limit=LIMIT)
    if unread := [path for path, source in sources.items() if source not in found]:
        raise UserError(f"{printable(unread[0])}: cannot be read")
    uri = {path: found[source].uri for path, source in sources.items()}
    study = {
        "id": secrets.token_hex(8),
        "questions": QUESTIONS,
        "style": [uri[path] for path in shown],
        "photos": [
            {
                "content": uri[photos[photo]],
                "pictures": {codes[method]: uri[files[photo]] for method, files in pictures.items()},
            }
            for photo in common
        ],
        "comparisons": [[i, codes_] for i in range(len(common)) for codes_ in sets],
        "most": most or len(common) * len(sets),
    }
    sheet, script = ((PAGE / name).read_text(encoding="utf-8") for name in ("study.css", "study.js"))
    environment = Environment(loader=FileSystemLoader(PAGE), autoescape=True, undefined=StrictUndefined)
    page = environment.get_template("study.html.jinja").render(
        study=json.dumps(study).replace("<", "\\u003c"),
        style=sheet,
        script=script,
        policy=content_policy(sheet, script),
    )
    key = out.with_name(f"{out.stem}-key.json")
    content = {"study": study["id"], "methods": {code: method for method, code in codes.items()}, "photos": common}
    out.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(out, lambda path: path.write_text(page, encoding="utf-8"))
    write_atomically(key, lambda path: path.write_text(json.dumps(content, indent=1) + "\n"))
    return key


def wilson(chosen: int, shown: int) -> tuple[float, float]:
    """The 95 % interval of a share by Wilson's score: (p + z²/2n ± z sqrt(p (1 - p)/n + z²/4n²)) / (1 + z²/n)."""
    p, square = chosen / shown, Z**2 / shown
    middle, half = p + square / 2, Z * math.sqrt(p * (1 - p) / shown + square / shown / 4)
    return (middle - half) / (1 + square), (middle + half) / (1 + square)


def bradley_terry(votes: Sequence[tuple[str, Sequence[str]]], *, steps: int = 10_000) -> dict[str, float]:
    """Strengths with sum 1 of which (chosen, shown) is the likeliest: p_chosen / the sum of the p that were shown.

    Hunter's iteration (2004), p_i = wins_i / sum over the sets with i of 1 / (sum of their p), until nothing moves by
    1e-10. For sets of two this is Bradley and Terry's model, for larger ones Luce's.
    """
    wins = Counter(chosen for chosen, _ in votes)
    sets = Counter(tuple(sorted(shown)) for _, shown in votes)
    names = sorted({name for shown in sets for name in shown})
    p = dict.fromkeys(names, 1 / len(names))
    for _ in range(steps):
        sums = {shown: sum(p[name] for name in shown) for shown in sets}
        new = {i: wins[i] / sum(n / sums[shown] for shown, n in sets.items() if i in shown) for i in names}
        new = {i: value / sum(new.values()) for i, value in new.items()}
        moved, p = max(abs(new[i] - p[i]) for i in names), new
        if moved < 1e-10:
            break
    return p


def read_votes(files: Sequence[Path]) -> tuple[dict[str, str], list[dict[str, Any]], int]:
    """The methods by code, the votes, and the number of people; of two files of a person the longer counts.

    Raises:
        UserError: a file is none of this study, or the key is not among them.
    """
    keys: dict[str, dict[str, str]] = {}
    people: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for file in files:
        try:
            content = json.loads(file.read_text(encoding="utf-8"))
            if "methods" in content:
                keys[content["study"]] = content["methods"]
                continue
            voter = content["study"], content["voter"]
            votes = [{**vote, "voter": content["voter"]} for vote in content["votes"]]
            known = all(vote["chosen"] in vote["shown"] and vote["question"] in QUESTIONS for vote in votes)
        except OSError as error:
            raise UserError(f"{printable(file)}: cannot be read ({error.strerror})") from error
        except (KeyError, TypeError, ValueError) as error:
            raise UserError(f"{printable(file)}: neither votes nor the key of a study") from error
        if not known:
            raise UserError(f"{printable(file)}: a vote is for a picture that was not shown")
        people[voter] = max(people.get(voter, []), votes, key=len)
    if len(keys) != 1:
        raise UserError(f"{len(keys)} keys among the files; name the one that smsff study make wrote, beside the votes")
    (study, methods), = keys.items()  # fmt: skip
    if other := [voter for of, voter in people if of != study]:
        raise UserError(f"the votes of {other[0]} are those of another study")
    votes = [vote for own in people.values() for vote in own]
    if not votes or any(not set(vote["shown"]) <= methods.keys() for vote in votes):
        raise UserError("there are no votes, or some about methods that the key does not have")
    return methods, votes, len(people)


def count(files: Sequence[Path]) -> dict[str, Any]:
    """Shares, intervals and strengths for each question, and how steady the answers are.

    Returns:
        ``questions``: question -> method -> chosen, shown, share, low, high, strength, the strongest first; ``votes``,
        ``people``; ``same``: share of the comparisons that were answered alike in both orders; ``first``: share of
        the votes for the first picture.

    Raises:
        UserError: see `read_votes`.
    """
    methods, votes, people = read_votes(files)
    questions: dict[str, Any] = {}
    for question in QUESTIONS:
        own = [
            (methods[v["chosen"]], [methods[code] for code in v["shown"]]) for v in votes if v["question"] == question
        ]
        if not own:
            continue
        chosen, shown = Counter(name for name, _ in own), Counter(name for _, names in own for name in names)
        strengths = bradley_terry(own)
        rows = {}
        for name in sorted(strengths, key=lambda name: -strengths[name]):
            low, high = wilson(chosen[name], shown[name])
            rows[name] = {"chosen": chosen[name], "shown": shown[name], "share": chosen[name] / shown[name]}
            rows[name] |= {"low": low, "high": high, "strength": strengths[name]}
        questions[question] = rows
    asked: dict[Any, list[str]] = {}
    for vote in votes:
        key = vote["voter"], vote["question"], vote["photo"], tuple(sorted(vote["shown"]))
        asked.setdefault(key, []).append(vote["chosen"])
    both = [answers for answers in asked.values() if len(answers) == 2]
    return {
        "questions": questions,
        "votes": len(votes),
        "people": people,
        "same": sum(a == b for a, b in both) / len(both) if both else None,
        "first": sum(vote["chosen"] == vote["shown"][0] for vote in votes) / len(votes),
    }


def to_markdown(counted: Mapping[str, Any]) -> str:
    """The count as one table for each question."""
    blocks = [f"{counted['votes']} votes of {counted['people']} people. First picture chosen: {counted['first']:.3f}."]
    if counted["same"] is not None:
        blocks[0] += f" Answered alike in both orders: {counted['same']:.3f}."
    for question, rows in counted["questions"].items():
        lines = [
            f"| **{question}** | chosen / shown | share | 95 % interval | Bradley–Terry |",
            "|---|---:|---:|---:|---:|",
        ]
        lines += [
            f"| {name} | {one['chosen']} / {one['shown']} | {one['share']:.3f} | "
            f"{one['low']:.3f} to {one['high']:.3f} | {one['strength']:.3f} |"
            for name, one in rows.items()
        ]
        blocks.append("\n".join(lines))
    return "\n\n".join(blocks) + "\n"
