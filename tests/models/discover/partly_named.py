"""scikit-learn's checks for methods that need rows of known classes beside rows of none."""

from collections.abc import Callable
from typing import Any

import numpy as np
from sklearn.utils.estimator_checks import estimator_checks_generator


def partly_labelled(n: int, classes: int = 4) -> np.ndarray:
    """Labels 0, 1, ... in turn, the last of them hidden as -1."""
    y = np.arange(n) % classes
    return np.where(y == classes - 1, -1, y)


def sklearn_contract(
    cls: type,
    expected_failures: dict[str, str] | None = None,
    labels: Callable[[int], np.ndarray] = partly_labelled,
    **parameters: Any,
) -> list[Any]:
    """The checks on `cls`, given `labels` of its kind where a check brings its own (complete ones)."""

    def fit(self: Any, X: Any, y: Any = None) -> Any:
        return cls.fit(
            self, X, y if y is None or np.asarray(y).shape != np.asarray(X).shape[:1] else labels(len(np.asarray(y)))
        )

    partly = type(cls.__name__, (cls,), {"fit": fit, "__module__": __name__})
    globals()[cls.__name__] = partly  # pickle looks it up here
    checks = estimator_checks_generator(
        partly(random_state=0, **parameters), expected_failed_checks=expected_failures or {}, mark="xfail"
    )
    return [pair for pair in checks if "check_array_api_input" not in str(pair)]


def name_of(value: Any) -> str:
    return getattr(getattr(value, "func", None), "__name__", "")
