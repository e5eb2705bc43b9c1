"""The configuration of a command line, composed as train.py composes it, for commands that are not train.py."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.errors import HydraException
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

import smsff.config.check  # registers ${asset:...}
from smsff.config.overrides import prepared
from smsff.config.paths import absolute
from smsff.config.trust import limit_resolvers
from smsff.errors import UserError
from smsff.training.launch import explain

CHECKOUT = Path(smsff.config.check.__file__).parents[3] / "conf"


def find_conf(folder: str | None) -> Path:
    """The folder with train.yaml: the one given, else ``conf`` in the current folder, else that of the source tree.

    Raises:
        UserError: there is none.
    """
    if folder is not None:
        if not (Path(folder) / "train.yaml").is_file():
            raise UserError(f"--conf {folder}: there is no train.yaml in it")
        return Path(folder).resolve()
    for candidate in (Path.cwd() / "conf", CHECKOUT):
        if (candidate / "train.yaml").is_file():
            return candidate
    raise UserError(
        f"no configuration here: {Path.cwd()} has no conf/train.yaml; run the command in the folder of the repository, "
        "or name its conf folder with --conf DIR"
    )


def composed(conf: Path, overrides: Sequence[str]) -> dict[str, Any]:
    """The resolved configuration, with ``baseline=NAME`` that of a baseline; a value still to be given is ``???``.

    Raises:
        UserError: a word that is no override, or one that the configuration does not have, with the nearest it has.
    """
    limit_resolvers()  # a configuration must not read the environment into a URL
    name = "baseline" if any(word.startswith("baseline=") for word in overrides) else "train"
    GlobalHydra.instance().clear()
    try:
        with initialize_config_dir(config_dir=str(conf), version_base="1.3"):
            config = compose(name, overrides=prepared(overrides))
        return absolute(cast(dict[str, Any], OmegaConf.to_container(config, resolve=True, throw_on_missing=False)))
    except HydraException as error:
        raise UserError(explain(error, config_dir=conf, config_name=name, words=overrides)) from error
    except OmegaConfBaseException as error:
        raise UserError(f"{error.full_key}: {str(error).splitlines()[0]}") from error
    except ValueError as error:
        if "Config group override" not in str(error):
            raise
        raise UserError(
            "null is no choice of a group; leave it out, or take none where there is such a choice"
        ) from error
