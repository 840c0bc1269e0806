"""Files that mm's packages read for a recipe hold values here: nothing in them runs.

mmengine's reader of checkpoints falls back to pickle, its reader of ``.pkl`` is pickle, and its reader of ``.yaml``
calls whatever the file names. All three are replaced, for this process, before a recipe is read. A recipe that a
checkpoint holds is no code either, though registries would call "package.module.function" given as a type.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, NoReturn

import mmengine.registry.registry
import yaml
from mmengine.fileio import PickleHandler, YamlHandler, register_handler
from mmengine.runner.checkpoint import CheckpointLoader

from elsa.core import CheckpointError, ConfigError, DataError
from elsa.models import read_checkpoint

from .keys import nodes

# What reads pickles by itself, past the readers that are replaced: (key, value).
READING_PICKLES = (("type", "OpenImagesChallengeDataset"), ("decode_backend", "pickle"))
WRITTEN = ("out_file_path", "outfile_prefix", "output_dir")  # where evaluators write what they were given
SCOPES = ("mmengine", "mmcv", "mmdet", "mmseg", "mmpretrain")
REGISTERED = re.compile(rf"(({'|'.join(SCOPES)})\.)?[A-Za-z_]\w*")
OURS = re.compile(r"(elsa|mmdet|mmseg|mmpretrain)(\.[A-Za-z]\w*)+")


def read_values_only() -> None:
    """Readers that execute nothing, for all that mm's packages read from files in this process."""
    for scheme in list(CheckpointLoader._schemes):
        CheckpointLoader.register_scheme(scheme, _refuse_address if scheme else _read_weights, force=True)
    register_handler(["pkl", "pickle"])(_Pickles)
    register_handler(["yaml", "yml"])(_PlainYaml)


def _read_weights(path: str, map_location: Any = None) -> dict[str, Any]:
    return read_checkpoint(path, None)


def _refuse_address(address: str, map_location: Any = None) -> NoReturn:
    raise CheckpointError(f"checkpoint {address} is no file: download it, and name the file")


class _Pickles(PickleHandler):
    """Written, but not read."""

    def load_from_fileobj(self, file: Any, **options: Any) -> NoReturn:
        raise DataError("a pickle could run anything, and was not read: convert it to JSON")

    def load_from_path(self, filepath: Any, **options: Any) -> NoReturn:
        self.load_from_fileobj(filepath)


class _PlainYaml(YamlHandler):
    def load_from_fileobj(self, file: Any, **options: Any) -> Any:
        try:
            return yaml.safe_load(file)
        except yaml.YAMLError as error:
            raise DataError(f"a YAML file has more than values: {' '.join(str(error).split()):.200}") from error


def refuse_pickles(values: Mapping[str, Any]) -> None:
    """Raises ConfigError where a configuration names pickles, or something that reads such by itself."""
    for name, value in nodes(values):
        key = name.rpartition(".")[2]
        if not isinstance(value, str):
            continue
        if (key, value.rpartition(".")[2]) in READING_PICKLES:
            raise ConfigError(f"{name} {value!r} reads pickles, which could run anything")
        if value.endswith((".pkl", ".pickle")) and key not in WRITTEN:
            raise ConfigError(f"{name} {value!r} is a pickle, which could run anything: convert it to JSON")


def refuse_code(values: Mapping[str, Any], origin: str) -> None:
    """Raises ConfigError where a configuration that no user wrote as code could call or import something; from then on
    registries of this process know what is registered, and import nothing by its name.

    Args:
        values: of a checkpoint.
        origin: where they come from.
    """
    for name, value in nodes(values):
        key = name.rpartition(".")[2]
        if not isinstance(value, (str, int, float, bool, type(None), dict, list, tuple)):
            raise ConfigError(f"{origin}: its recipe has {name} {value!r:.80}, which is no plain value; name CONFIG")
        if key in WRITTEN and value:
            raise ConfigError(f"{origin}: its recipe writes files, {name} {value!r:.80}; name CONFIG")
        known = value in SCOPES if key in ("_scope_", "default_scope") else REGISTERED.fullmatch(str(value))
        if key in ("type", "_scope_", "default_scope") and not (isinstance(value, str) and known):
            raise ConfigError(f"{origin}: its recipe has {name} {value!r:.80}, which could run anything; name CONFIG")
    imports = values.get("custom_imports") or {}
    modules = imports.get("imports") if isinstance(imports, Mapping) else imports
    for module in modules if isinstance(modules, (list, tuple)) else [modules]:
        if module is not None and not OURS.fullmatch(str(module)):
            raise ConfigError(f"{origin}: its recipe imports {module!r:.80}, which could run anything; name CONFIG")
    mmengine.registry.registry.get_object_from_string = _import_nothing


def _import_nothing(name: str) -> NoReturn:
    raise ConfigError(f"{name!r} of a checkpoint's recipe is registered nowhere; name CONFIG")
