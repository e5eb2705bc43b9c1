"""``smsff doctor``: what a training would find missing, in seconds, without loading a weight."""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from smsff.config.paths import FILES
from smsff.errors import UserError
from smsff.weights.compose import composed, find_conf
from smsff.weights.fetch import by_hand, source_of, terms
from smsff.weights.files import spell_size
from smsff.weights.forecast import fitting, forecast, room_problems
from smsff.weights.machine import describe_machine, hardware_problems, room, runs_on_gpu, versions
from smsff.weights.manifest import Need, Status, look, needs, read_lock

CARDS = (24, 48, 80)
"""GB of memory of usual cards."""


def doctor(overrides: Sequence[str], *, conf: str | None = None, verify: bool = False, as_json: bool = False) -> int:
    """Print what is there and what is missing for the overrides of train.py; returns 0 if nothing is missing, else 1.

    Args:
        conf: Folder of the configuration; see `find_conf`.
        verify: Compute the hashes of the weights too.
        as_json: Print `examine`'s report as JSON.

    Raises:
        UserError: there is no such configuration.
    """
    report = examine(composed(find_conf(conf), overrides), overrides=overrides, verify=verify)
    if as_json:
        print(json.dumps(report, indent=2))
    else:
        console = Console(soft_wrap=True, highlight=False, markup=False)
        for line in lines(report):
            console.print(line)
    return 1 if report["problems"] else 0


def examine(plain: Mapping[str, Any], *, overrides: Sequence[str] = (), verify: bool = False) -> dict[str, Any]:
    """The report on a resolved configuration, as plain containers; it proposes a command with these overrides."""
    found = _look(plain, verify=verify)
    machine, training = describe_machine(), plain.get("task") != "baseline"
    teacher, trainer = plain.get("teacher") or {}, plain.get("trainer") or {}
    run_dir = room(Path(plain.get("run_dir", ".")))
    loras, lora_problems = _loras(found)
    memory, unknown = forecast(plain, found, gpus=len(machine["gpus"])) if training else (None, "that of a training is")
    pictures, no_pictures = _pictures(plain.get("data") or {})
    problems = [
        *(weights_problem(status, overrides) for status in found if status.state != "there"),
        *lora_problems,
        *_data_problems(plain.get("data") or {}),
        *no_pictures,
        *hardware_problems(machine, trainer, teacher.get("dtype")),
    ]
    if memory is not None:
        problems += room_problems(memory, machine, run_dir, on_gpu=runs_on_gpu(machine, trainer))
    if run_dir["reason"]:
        problems.append(f"run_dir={run_dir['path']}: cannot be written in {run_dir['on']} ({run_dir['reason']})")
    return {
        "weights": [
            {"key": one.need.key, "name": one.need.name, "state": one.state, "size": one.size, "hash": one.hash}
            | {"revision": one.revision, "reason": one.reason, "source": _source(one.need), "terms": terms(one.need)}
            for one in found
        ],
        "loras": loras,
        "memory": memory,
        "memory_unknown": unknown,
        "data": dict(plain["data"] or {}) if training else None,
        "pictures": pictures,
        "run_dir": run_dir,
        "machine": machine,
        "asked": {
            "dtype": teacher.get("dtype"),
            **{key: trainer.get(key) for key in ("accelerator", "devices", "precision") if training},
            **({} if training else {"device": plain["device"]}),
        },
        "versions": versions(),
        "problems": problems,
    }


def _look(plain: Mapping[str, Any], *, verify: bool = False) -> list[Status]:
    locked = read_lock()
    return [look(need, locked.get(need.name), verify=verify) for need in needs(plain)]


def missing_weights(plain: Mapping[str, Any], overrides: Sequence[str]) -> list[str]:
    """A sentence for each weight of a resolved configuration that is not there as it should be, with what to do."""
    return [weights_problem(status, overrides) for status in _look(plain) if status.state != "there"]


def _source(need: Need) -> str | None:
    return "hub" if need.hub else need.weight.source if need.weight else None


def weights_problem(status: Status, overrides: Sequence[str]) -> str:
    """What is wrong with weights that are not there as they should be, and what to do."""
    need = status.need
    if status.state != "missing":
        mend = "run `smsff fetch` again" if need.hub else f"move {need.path} away and get it again"
        return f"{need.key}={need.name}: {status.reason}; {mend}"
    command = f"smsff fetch {shlex.join(overrides)}".strip()
    fetch = f"run `{command}`, or " if source_of(need) else ""
    return f"{need.key}={need.name}: missing; {fetch}{by_hand(need)}"


def _loras(found: Sequence[Status]) -> tuple[list[dict[str, Any]], list[str]]:
    """What the headers of the LoRA files say, and what is wrong with them or does not fit the base."""
    from smsff.teacher.lora.inspect import inspect_lora, refuse_other_base, refuse_text_alone

    bases = {status.need.key: status for status in found}
    base = bases.get("teacher.style_base") or bases.get("teacher.base")
    reports, problems = [], []
    for status in found:
        if status.need.key == "teacher.lora" and status.state == "there":
            try:
                info = inspect_lora(status.need.path)
                reports.append(info.as_dict())
                refuse_text_alone(info)
                networks = ("unet/config.json", "transformer/config.json")
                settings = next((base.files[name] for name in networks if base and name in base.files), None)
                if base is not None and settings is not None:
                    refuse_other_base(info, json.loads(settings.read_text(encoding="utf-8")), key=base.need.key)
            except UserError as error:
                problems.append(str(error))
    return reports, problems


def _data_problems(data: Mapping[str, Any], prefix: str = "data") -> Iterator[str]:
    """Folders and files of the data, nested ones too, that are still to be named or do not exist."""
    for key, value in data.items():
        name = f"{prefix}.{key}"
        if isinstance(value, Mapping):
            yield from _data_problems(value, name)
        elif value == "???":
            yield f"{name}: no value given; add {name}=... to the command"
        elif name in FILES and isinstance(value, str) and not Path(value).exists():
            yield f"{name}={value}: does not exist"


def _pictures(data: Mapping[str, Any]) -> tuple[dict[str, Any] | None, list[str]]:
    """How many pictures data.root has by their names, and what is left out of it; a problem if there are none."""
    from smsff.data.folder import ImageFolder, is_shards
    from smsff.data.images import describe_others, list_images

    root = Path(str(data.get("root") or "")).expanduser()
    if not data.get("root") or not root.is_dir():
        return None, []
    if is_shards(root):
        try:
            folder = ImageFolder(root, default_caption="")
        except UserError as error:
            return None, [str(error)]
        images, others = folder.names, folder.others
    else:
        images, others = list_images(root)
    left_out = describe_others(others) if others else None
    problem = f"data.root={data['root']}: no images in it or below it" + (f"; left out: {left_out}" if others else "")
    return {"images": len(images), "left_out": left_out}, [] if images else [problem]


def lines(report: Mapping[str, Any]) -> Iterator[str]:
    """The report for people."""
    hashes = {"verified": "hash verified", "not checked": "hash not checked (--verify)", "unknown": "hash not known"}
    yield "Weights"
    for one in report["weights"]:
        size = spell_size(one["size"]) if one["size"] else "-"
        note = hashes[one["hash"]] if one["state"] == "there" else (one["reason"] or one["state"])
        note = "comes with the package" if one["source"] == "package" and one["state"] == "there" else note
        commit = f", commit {one['revision'][:12]}" if one["revision"] else ""
        yield f"  {one['state']:<8} {one['key']:<19} {one['name']}  {size}, {note}{commit}; {one['terms']}"
    for one in report["loras"]:
        ranks = ", ".join(map(str, one["ranks"])) or "none"
        layers = ", ".join(f"{n} in {p}" for p, n in one["layers"].items())
        yield f"  LoRA     {Path(one['path']).name}: {one['format']} {', '.join(one['algorithms'])}, rank {ranks}"
        yield f"           for {one['family'] or 'a base model that it does not name'}; layers: {layers}"
        if one["unusable"]:
            yield f"           entries of its header that cannot be applied: {', '.join(one['unusable'])}"
    yield from _memory_lines(report["memory"], report["memory_unknown"], report["machine"]["gpus"])
    data, pictures = report["data"], report["pictures"]
    if data is not None:
        yield "Data"
        count = f"{pictures['images']} in " if pictures else ""
        yield f"  images   {count}{data.get('root', data.get('path')) or 'the bundled photos'}"
    if pictures and pictures["left_out"]:
        yield f"  left out {pictures['left_out']}"
    machine, asked, run_dir = report["machine"], report["asked"], report["run_dir"]
    yield "Machine"
    for gpu in machine["gpus"]:
        bf16 = "bfloat16" if gpu["bf16"] else "no bfloat16"
        free = f"{spell_size(gpu['memory'])}, {spell_size(gpu['memory_free'])} free"
        yield f"  GPU      {gpu['name']}, {free}, compute capability {gpu['capability']}, {bf16}"
    if not machine["gpus"]:
        yield "  GPU      none that torch can use"
    yield f"  CUDA     torch built for {machine['torch_cuda'] or 'none'}, driver {machine['driver'] or 'not found'}"
    free = f"{spell_size(machine['memory'])} of memory, {spell_size(machine['memory_free'])} free"
    yield f"  CPU      {machine['cpu_threads']} threads, {free}"
    yield "  Asked    " + ", ".join(f"{key} {value}" for key, value in asked.items())
    yield "  Versions " + ", ".join(f"{name} {number or 'MISSING'}" for name, number in report["versions"].items())
    yield f"  run_dir  {run_dir['path']}: {run_dir['reason'] or 'can be written'}, {spell_size(run_dir['free'])} free"
    yield "Nothing is missing." if not report["problems"] else f"Missing or wrong: {len(report['problems'])}"
    for problem in report["problems"]:
        yield f"  - {problem}"


def _memory_lines(
    memory: Mapping[str, Any] | None, unknown: str | None, gpus: Sequence[Mapping[str, Any]]
) -> Iterator[str]:
    yield "Needs"
    if memory is None:
        yield f"  memory   not known: {unknown}"
        return
    for one in memory["networks"]:
        size = f"{one['parameters'] / 1e6:.1f} M parameters, {spell_size(one['bytes'])} ({one['dtype']})"
        yield f"  network  {one['name']}: {size}"
    parts = ", ".join(f"{spell_size(memory[key])} {key}" for key in ("frozen", "trained", "step"))
    pictures = f"{memory['batch']} pictures of {memory['size']} x {memory['size']} pixels"
    yield f"  memory   about {spell_size(memory['total'])} on each device for {pictures}: {parts}"
    if memory["quantised"]:
        sizes = ", ".join(f"{kind} {spell_size(total)}" for kind, total in memory["quantised"].items())
        yield f"  quantise by teacher.quantise: {sizes}"
    cards = {f"a card of {size} GB": size * 10**9 for size in CARDS}
    cards |= {f"the {gpu['name']} here": gpu["memory"] for gpu in gpus}
    yield f"  fits     {'; '.join(f'{card}: {fitting(memory, size)}' for card, size in cards.items())}"
    yield f"  loading  {spell_size(memory['loading'])} more of main memory for the text encoders, before the training"
    fetch = f"; {spell_size(memory['to_fetch'])} of weights to fetch" if memory["to_fetch"] else ""
    yield f"  disk     about {spell_size(memory['run'])} for the checkpoints of a run{fetch}"
    for text in memory["assumed"]:
        yield f"  assumed  {text}"
