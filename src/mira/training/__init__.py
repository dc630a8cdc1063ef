"""Recipe, step, loop and checkpoints."""

from mira.recipes import builtin_recipes
from mira.training.reading import load_recipe
from mira.training.recipe import Recipe
from mira.training.run_folder import LoadedRun, load_run
from mira.training.start import pretrain, resume

__all__ = ["LoadedRun", "Recipe", "builtin_recipes", "load_recipe", "load_run", "pretrain", "resume"]
