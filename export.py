"""Export the network of a checkpoint: ``python export.py ckpt=PATH [format=safetensors|onnx] [out=DIR]``.

Exit status: 0 done, 2 for a wrong command or bad input (with one message), 130 interrupted, 1 for anything unforeseen.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException
from omegaconf import DictConfig

import smsff.config.hydra_guard  # guards this process
import smsff.config.overrides
import smsff.pipes
import smsff.training.launch
from smsff.config.check import resolve
from smsff.errors import UserError

CONFIGS = Path(__file__).resolve().parent / "conf"


@hydra.main(version_base="1.3", config_path="conf", config_name="export")
def main(cfg: DictConfig) -> None:
    os.chdir(HydraConfig.get().runtime.cwd)  # paths are meant from there, also with hydra.job.chdir=True
    options = resolve(cfg)
    for key in ("ckpt", "format", "precision", "out"):
        if not isinstance(options[key], str) and not (key == "out" and options[key] is None):
            raise UserError(f"{key}={options[key]!r}: must be text")
    from smsff.stylize.export import export_checkpoint  # here: --help and the checks above should not wait for torch

    done = export_checkpoint(options["ckpt"], options["out"], options["format"], options["precision"])
    print(f"weights: {'average over the training (EMA)' if done.averaged else 'of the last step'}")
    for name, size in done.files.items():
        print(f"{done.folder / name}: {size / 1e6:.2f} MB")
    for (height, width), difference in done.agreement.parity.items():
        print(f"largest difference from the checkpoint at {height} x {width}: {difference:.1e} (RGB in [0, 1])")
    for name, decibels in done.agreement.psnr.items():
        print(f"PSNR to float32 on {name}: {decibels:.1f} dB")


def command_line() -> None:
    """Run, and turn what the user can mend into one message and exit status 2."""
    os.environ["HYDRA_FULL_ERROR"] = "1"  # errors come here instead of being printed by Hydra
    smsff.pipes.tolerate_closed()
    try:
        sys.argv[1:] = smsff.config.overrides.prepared(sys.argv[1:])
        main()
    except UserError as error:
        message = str(error)
    except HydraException as error:
        message = smsff.training.launch.explain(error, config_dir=CONFIGS, config_name="export")
    except KeyboardInterrupt:
        sys.exit(130)
    else:
        return
    print(f"error: {message}", file=sys.stderr)
    sys.exit(2)


if __name__ == "__main__":
    command_line()
