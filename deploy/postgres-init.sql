-- Prefect and MLflow number their migrations in a table of the same name: each has a database of its own.
CREATE DATABASE rltrack_prefect;
CREATE DATABASE rltrack_mlflow;
CREATE DATABASE rltrack_mlflow_accounts;
