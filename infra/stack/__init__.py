"""The stack on one machine: PostgreSQL, an S3 store, Prefect, MLflow and a worker, from Python packages alone."""
