"""What a pickle may hold beside arrays: plain containers that are built, and harmless classes that are stood for."""

from collections import OrderedDict
from collections.abc import Callable

from cp2_jax.convert.containers.values import Inert, Name, Refused, key, make_set

# Names that stand for nothing but data: what optimisers, arguments and configs of the known sources are made of.
_CLASSES = {
    "argparse": {"Namespace"},
    "pathlib": {"PosixPath", "PurePosixPath", "WindowsPath", "PureWindowsPath"},
    "datetime": {"datetime", "date", "time", "timedelta", "timezone"},
    "collections": {"defaultdict", "deque", "Counter"},
    "builtins": {"int", "float", "bool", "str", "list", "dict", "tuple", "object"},
    "addict": {"Dict"},
    "addict.addict": {"Dict"},
    "easydict": {"EasyDict"},
    "yacs.config": {"CfgNode"},
    "mmcv.utils.config": {"ConfigDict", "Config"},
    "mmengine.config.config": {"ConfigDict", "Config"},
    "mmengine.logging.history_buffer": {"HistoryBuffer"},
    "ml_collections.config_dict.config_dict": {"ConfigDict", "FrozenConfigDict"},
    "haiku._src.data_structures": {"FlatMapping", "FlatMap", "FlatComponents", "frozendict"},
    "jax._src.tree_util": {"default_registry", "PyTreeDef"},
    "torch.serialization": {"_get_layout"},
}
# Packages any of whose classes may be stood for: named tuples of training states; optimisers and their schedules.
_PACKAGES = ("byol.", "detcon.", "optax.", "haiku.", "acme.", "torch.optim.")


def is_inert(module: str, name: str) -> bool:
    """Say whether a class is known to be nothing but data. Its objects become `Inert`; the class is never imported."""
    is_class = name.lstrip("_")[:1].isupper() and name.isidentifier()
    return name in _CLASSES.get(module, ()) or (is_class and module.startswith(_PACKAGES))


def _ordered_dict(machine, pairs=()):
    if isinstance(pairs, dict):
        pairs = list(pairs.items())
    if not isinstance(pairs, list | tuple):
        raise Refused("an OrderedDict made from something other than pairs")
    machine.spend(100 * len(pairs))
    made = OrderedDict()
    for k, v in pairs:
        made[key(k)] = v
    return made


def _encode(machine, text, encoding="latin1"):
    if not isinstance(text, str) or encoding not in ("latin1", "latin-1"):
        raise Refused("text encoded other than as latin1")
    machine.spend(len(text))
    return text.encode("latin1")


def _bytearray(machine, data=b"", encoding="latin1"):
    if isinstance(data, str):
        return _encode(machine, data, encoding)
    if not isinstance(data, bytes):
        raise Refused("a bytearray made from something other than bytes")
    machine.spend(len(data))
    return bytes(data)


def _reconstructor(machine, cls, base, state):
    # Objects pickled by protocols 0 and 1.
    return Inert(str(cls)) if isinstance(cls, Name) and str(cls) not in machine.builders else machine.call(cls, ())


def _getattr(machine, owner, name):
    # MMEngine's history buffers refer to their own methods so. Nothing is looked up: the result is another inert object.
    if not isinstance(owner, Name | Inert) or not isinstance(name, str):
        raise Refused("builtins.getattr of something other than a listed class")
    return Inert(f"{owner if isinstance(owner, Name) else owner.name}.{name}")


def _complex(machine, real, imag):
    return complex(real, imag)


def _named_tuple_class(machine, name, fields, module, *_):
    # dill stores a named tuple's class of __main__ by its fields.
    if not isinstance(name, str):
        raise Refused("a named tuple without a name")
    return Name("namedtuple", name)


BUILDERS: dict[str, Callable] = {
    "collections.OrderedDict": _ordered_dict,
    "builtins.set": make_set,
    "builtins.frozenset": make_set,
    "builtins.bytes": _bytearray,  # how protocol 2 writes b""
    "builtins.bytearray": _bytearray,
    "builtins.complex": _complex,
    "builtins.getattr": _getattr,
    "_codecs.encode": _encode,
    "copyreg._reconstructor": _reconstructor,
    "dill._dill._create_namedtuple": _named_tuple_class,
}
