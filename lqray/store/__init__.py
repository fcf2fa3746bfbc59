"""MLflow as lqray's store: how it is opened, waited for and read."""
