"""From records in a results folder to tables and figures, without torch and without the weights."""
