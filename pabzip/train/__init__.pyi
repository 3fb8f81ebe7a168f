from .build import (
    build_network,
    classifier_name,
    seed_network,
)
from .callbacks.base import (
    Callback,
    build_callback,
    parse_callback,
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
    Recipe,
    SearchRecipe,
    from_dict,
    merge,
    method_of,
    to_dict,
)
from .cost import (
    bit_operations,
    count_macs,
    layer_costs,
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
from .methods import (
    BopRecipe,
    ImpRecipe,
    LatentRecipe,
    Method,
    PsgRecipe,
    SgdRecipe,
    SignSgdRecipe,
)
from .pruning import (
    Estimate,
    apply_ticket,
    estimate_costs,
)
from .recipes import (
    default_recipe,
    read_recipe,
)
from .results import (
    EpochStats,
    LayerCost,
    Progress,
    SearchResult,
    StepCosts,
    TrainResult,
)
from .resume import (
    SaveEvery,
)
from .run import (
    find_ticket,
    train,
)
from .sanity import (
    SanityResult,
    sanity_checks,
)
from .score_settings import (
    EdgePopupRecipe,
    GemMinerRecipe,
)

__all__ = [
    "BopRecipe",
    "Callback",
    "Curves",
    "EdgePopupRecipe",
    "EpochStats",
    "Estimate",
    "Evaluation",
    "ExpectedBytes",
    "GemMinerRecipe",
    "ImpRecipe",
    "JsonLog",
    "LatentRecipe",
    "LayerCost",
    "Method",
    "Progress",
    "ProgressBar",
    "PsgRecipe",
    "Recipe",
    "SanityResult",
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
    "build_callback",
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
    "parse_callback",
    "read_recipe",
    "sanity_checks",
    "seed_network",
    "step_costs",
    "to_dict",
    "train",
]
