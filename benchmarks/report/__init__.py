"""What is shown: tables, verdicts, figures and the page, as functions of the runs in the store alone."""
