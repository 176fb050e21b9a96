"""MLflow's server with its basic-auth app, as one process.

``mlflow server`` starts uvicorn as a child and imports everything twice; a child whose parent was killed would keep the
port. Here uvicorn serves the same application itself.
"""

from __future__ import annotations

import os
from typing import Any


def create_app() -> Any:
    """What ``mlflow server --app-name basic-auth`` serves, from ``MLFLOW_*`` variables.

    The administrator gets the password of ``MLFLOW_AUTH_ADMIN_PASSWORD`` even if there was another one before.
    """
    from mlflow.environment_variables import _MLFLOW_SGI_NAME
    from mlflow.server import (
        ARTIFACT_ROOT_ENV_VAR,
        ARTIFACTS_DESTINATION_ENV_VAR,
        BACKEND_STORE_URI_ENV_VAR,
        SERVE_ARTIFACTS_ENV_VAR,
        handlers,
    )

    database, proxied = os.environ["MLFLOW_BACKEND_STORE_URI"], "mlflow-artifacts:/"
    os.environ |= {
        BACKEND_STORE_URI_ENV_VAR: database,
        ARTIFACT_ROOT_ENV_VAR: proxied,
        ARTIFACTS_DESTINATION_ENV_VAR: os.environ["MLFLOW_ARTIFACTS_DESTINATION"],
        SERVE_ARTIFACTS_ENV_VAR: "true",
        _MLFLOW_SGI_NAME.name: "uvicorn",
    }
    from mlflow.server import auth

    handlers.initialize_backend_stores(database, database, proxied)
    application = auth.create_app()
    user, password = os.environ["MLFLOW_AUTH_ADMIN_USERNAME"], os.environ["MLFLOW_AUTH_ADMIN_PASSWORD"]
    if not auth.store.authenticate_user(user, password):
        auth.store.update_user(user, password=password)
    return application
