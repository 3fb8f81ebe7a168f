"""pabzip: neural networks as seeds.

A ticket is a seed, an init spec a weight, one code a weight in {0, +1, -1} and the few tensors
that were trained in the ordinary way. pabzip finds such tickets, packs them into ``.pabz`` files,
and regenerates every weight bit for bit.

The public names are declared once, in ``__init__.pyi``. Each is imported on first use, so
``import pabzip`` loads neither torch nor onnx, and reading a file needs neither.
"""

from pabzip._optional import lazy_names
from pabzip._version import __version__ as __version__

__getattr__, __dir__, __all__ = lazy_names(__name__, __file__, extra="torch")
__all__ = [*__all__, "__version__"]
