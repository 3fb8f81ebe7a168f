"""Image datasets, in memory or in files, with fixed splits and batches in a reproducible order.

The public names are declared once, in ``__init__.pyi``, and imported on first use, so that the
names of datasets and what is known of each can be had without torch.
"""

from pabzip._optional import lazy_names

__getattr__, __dir__, __all__ = lazy_names(__name__, __file__, extra="train")
