"""The benchmark harness: spec row -> cell -> MLflow run -> tables, figures and verdicts in results/."""
