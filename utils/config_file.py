"""`config.yaml` of a run: what its numbers depend on, with a checksum, so that an altered file is not taken for it."""

import hashlib
from pathlib import Path
from typing import Any

import yaml

from palimpsest.utils.atomic import write_text
from palimpsest.utils.errors import UserError

LARGEST = 1 << 17  # bytes; ours are a few thousand, and a second is what so many take
CHECKSUM = "# sha256 "
SECTIONS = ("options", "origins", "environment")


def write_config(path: Path, facts: dict[str, Any]) -> None:
    """Write plain values as YAML; the last line is a checksum of all before it."""
    text = yaml.safe_dump(facts, sort_keys=False, allow_unicode=True)
    write_text(path, f"{text}{CHECKSUM}{hashlib.sha256(text.encode()).hexdigest()}\n")


def read_config(path: Path) -> dict[str, Any]:
    """Read what `write_config` wrote.

    Raises:
        UserError: missing, too large, altered, or not such a file.
    """
    try:
        if path.exists() and not path.is_file():
            raise UserError(f"{path} is not a file")
        if path.stat().st_size > LARGEST:
            raise UserError(f"{path} is larger than any configuration file of this program")
        data = path.read_bytes()
    except OSError as e:
        raise UserError(f"{path} cannot be read: {e.strerror or e}") from None
    body, mark, digest = data.rpartition(CHECKSUM.encode())
    if not data:
        raise UserError(f"{path} is empty")
    if not mark:
        raise UserError(f"{path} has no checksum in its last line: truncated, or not a run's configuration")
    if digest.strip() != hashlib.sha256(body).hexdigest().encode():
        raise UserError(f"{path} was altered since it was written: its checksum is wrong")
    facts = plain_yaml(path, body)
    if not isinstance(facts, dict) or not all(isinstance(facts.get(s), dict) for s in SECTIONS):
        raise UserError(f"{path} is not a run's configuration: it needs {', '.join(SECTIONS)}")
    for section in SECTIONS:
        for name, value in facts[section].items():
            parts = value if isinstance(value, list) else [value]
            plain = all(part is None or type(part) in (bool, int, float, str) for part in parts)
            if type(name) is not str or not plain:
                raise UserError(f"{path}: {section}.{str(name)[:100]!r} is not a plain value")
    return facts


def read_options(path: Path) -> tuple[dict[str, Any], bool]:
    """The options of a YAML file, names with `_`, and whether the file is a run's `config.yaml`, of which the facts
    beside the options are left out. What has no value is not given.

    Raises:
        UserError: it cannot be read, or is no mapping of names to values.
    """
    try:
        large = path.stat().st_size > LARGEST
    except OSError as e:
        raise UserError(f"--config {path} cannot be read: {e.strerror or e}") from None
    facts = {} if large else plain_yaml(path) or {}
    a_run = isinstance(facts, dict) and isinstance(facts.get("options"), dict)
    options = facts["options"] if a_run else facts
    if large or not isinstance(options, dict) or not all(type(name) is str for name in options):
        raise UserError(f"--config {path} holds no options: expected lines as 'model: er' and 'lr: 0.1'")
    named = {name.replace("-", "_"): value for name, value in options.items() if value is not None}
    if len(named) < sum(value is not None for value in options.values()):
        raise UserError(f"--config {path} gives an option twice, with - and with _: keep one")
    return named, a_run


def as_yaml(options: dict[str, Any]) -> str:
    """Options as `read_options` reads them: those that are given, what is trained on what first."""
    given = {name: value for name, value in options.items() if value is not None}
    first = {name: given.pop(name) for name in ("model", "dataset", "backbone") if name in given}
    return yaml.safe_dump(first | dict(sorted(given.items())), sort_keys=False, allow_unicode=True)


def plain_yaml(path: Path, data: bytes | None = None) -> Any:
    """The plain values of a YAML file, None of an empty one.

    Args:
        data: its content; it is read where that is None.

    Raises:
        UserError: it cannot be read, or is not YAML of plain values; the line names the place.
    """
    try:
        data = path.read_bytes() if data is None else data
        return yaml.load(data, _Loader)
    except OSError as e:
        raise UserError(f"{path} cannot be read: {e.strerror or e}") from None
    except yaml.MarkedYAMLError as e:
        line, problem = e.problem_mark.line + 1, e.problem
    except yaml.reader.ReaderError as e:
        line, problem = data.count(b"\n", 0, e.position) + 1, e.reason
    except RecursionError:
        line, problem = 1, "nested too deeply"
    raise UserError(f"{path.name}, line {line}: {problem[:200]}: mend the YAML")


class _Loader(yaml.SafeLoader):
    """Without aliases, of which a few lines, merged into one another, would fill the memory. Of two equal keys PyYAML
    keeps the last in silence, which would lose values: here they are an error. So is a value that it takes for a date
    or a number and cannot convert, which it would raise without saying where.
    """

    def compose_node(self, parent, index):
        if self.check_event(yaml.AliasEvent):
            raise yaml.composer.ComposerError(None, None, "an alias", self.peek_event().start_mark)
        return super().compose_node(parent, index)

    def construct_object(self, node, deep=False):
        try:
            return super().construct_object(node, deep)
        except (ValueError, TypeError, LookupError, AttributeError) as e:
            raise yaml.constructor.ConstructorError(None, None, f"'{node.value}': {e}", node.start_mark) from None

    def construct_mapping(self, node, deep=False):
        seen = set()
        for key in (key for key, _ in node.value if isinstance(key, yaml.ScalarNode)):
            if key.value in seen:
                raise yaml.constructor.ConstructorError(None, None, f"'{key.value}' appears twice", key.start_mark)
            seen.add(key.value)
        return super().construct_mapping(node, deep)
