from .bitops import (
    LayerCost,
    bit_operations,
    count_macs,
    layer_costs,
)
from .build import (
    build_network,
    classifier_name,
    seed_network,
)
from .callbacks.base import (
    Observer,
    Progress,
)
from .callbacks.curves import (
    Curves,
)
from .callbacks.json_log import (
    JsonLog,
)
from .callbacks.progress import (
    ProgressBar,
)
from .callbacks.tensorboard import (
    TensorBoard,
)
from .config import (
    BopRecipe,
    LatentRecipe,
    PsgRecipe,
    Recipe,
    SearchRecipe,
    SgdRecipe,
    SignSgdRecipe,
    default_recipe,
    from_dict,
    merge,
    to_dict,
)
from .cost import (
    Estimate,
    StepCosts,
    estimate_costs,
    method_costs,
    step_costs,
)
from .evaluation import (
    Evaluation,
    evaluate,
)
from .file_size import (
    ExpectedBytes,
)
from .found_tickets import (
    SearchResult,
    apply_ticket,
    find_ticket,
)
from .methods import (
    Method,
    method_of,
)
from .recipes import (
    read_recipe,
)
from .results import (
    EpochStats,
    TrainResult,
)
from .resume import (
    SaveEvery,
)
from .trainer import (
    train,
)

__all__ = [
    "BopRecipe",
    "Curves",
    "EpochStats",
    "Estimate",
    "Evaluation",
    "ExpectedBytes",
    "JsonLog",
    "LatentRecipe",
    "LayerCost",
    "Method",
    "Observer",
    "Progress",
    "ProgressBar",
    "PsgRecipe",
    "Recipe",
    "SaveEvery",
    "SearchRecipe",
    "SearchResult",
    "SgdRecipe",
    "SignSgdRecipe",
    "StepCosts",
    "TensorBoard",
    "TrainResult",
    "apply_ticket",
    "bit_operations",
    "build_network",
    "classifier_name",
    "count_macs",
    "default_recipe",
    "estimate_costs",
    "evaluate",
    "find_ticket",
    "from_dict",
    "layer_costs",
    "merge",
    "method_costs",
    "method_of",
    "read_recipe",
    "seed_network",
    "step_costs",
    "to_dict",
    "train",
]
