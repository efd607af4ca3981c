#!/bin/sh
# MLflow's server with accounts. The first administrator comes from MLFLOW_USER and MLFLOW_PASSWORD; MLflow's own default
# password is never used. Needs POSTGRES_PASSWORD, and MLFLOW_FLASK_SERVER_SECRET_KEY for its forms.
set -eu
: "${MLFLOW_USER:?}" "${MLFLOW_PASSWORD:?}" "${POSTGRES_PASSWORD:?}" "${MLFLOW_FLASK_SERVER_SECRET_KEY:?}"
database="${MLFLOW_DATABASE:-postgresql+psycopg://rltrack:${POSTGRES_PASSWORD}@postgres:5432}"
umask 077
cat > "${MLFLOW_AUTH_CONFIG_PATH:?}" <<EOF
[mlflow]
default_permission = READ
database_uri = ${database}/rltrack_mlflow_accounts
admin_username = ${MLFLOW_USER}
admin_password = ${MLFLOW_PASSWORD}
authorization_function = mlflow.server.auth:authenticate_request_basic_auth
EOF
exec python -m mlflow server --app-name basic-auth --workers 2 \
    --host "${MLFLOW_HOST:-0.0.0.0}" --port "${MLFLOW_PORT:-5000}" \
    --backend-store-uri "${database}/rltrack_mlflow" \
    --artifacts-destination "${MLFLOW_ARTIFACTS:-s3://mlflow}" \
    --allowed-hosts "${MLFLOW_ALLOWED_HOSTS:-mlflow:5000,localhost:5000,127.0.0.1:5000}"
