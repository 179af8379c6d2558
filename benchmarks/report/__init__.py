"""What is shown: tables, verdicts, figures and the page, as functions of the records of runs alone."""
