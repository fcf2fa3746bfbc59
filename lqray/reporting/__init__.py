"""From records in MLflow to tables. Reads only."""
