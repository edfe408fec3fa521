"""When the learning rate drops, and when training ends: VGG paper, Sect. 3.1, with "stopped improving" defined."""

from dataclasses import dataclass, replace

from vggfeat.training.settings import Recipe


@dataclass(frozen=True, kw_only=True)
class Plateau:
    """What the validations so far have shown.

    An accuracy more than `recipe.least_gain` above the best so far is an improvement. After `recipe.patience`
    validations in a row without one the learning rate drops and the count starts anew; the best stays. When that
    happens with all `recipe.drops` spent, training ends.
    """

    best: float = -1.0
    """Best top-1 accuracy, from 0 to 1; -1 before the first validation."""
    stale: int = 0
    """Validations in a row without an improvement."""
    drops: int = 0
    """How often the learning rate has dropped; one more than `recipe.drops` when training is to end."""

    def after(self, accuracy: float, recipe: Recipe) -> "Plateau":
        """Return what is known after one more validation.

        Parameters
        ----------
        accuracy : float
            Top-1, from 0 to 1.
        recipe : Recipe
        """
        if accuracy > self.best + recipe.least_gain or self.best < 0:
            return replace(self, best=accuracy, stale=0)
        if self.stale + 1 < recipe.patience:
            return replace(self, stale=self.stale + 1)
        return replace(self, stale=0, drops=self.drops + 1)

    def learning_rate(self, recipe: Recipe) -> float:
        """Return the learning rate of the next step."""
        return recipe.learning_rate / recipe.drop_factor ** min(self.drops, recipe.drops)

    def ended(self, recipe: Recipe) -> bool:
        """Say whether training is to end."""
        return self.drops > recipe.drops
