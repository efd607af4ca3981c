"""What is deployed: Prefect deployments, container images, the server stack."""
