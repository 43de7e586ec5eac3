"""What metrics stand on: the subject, turns and their samples, captured and predicted steps. No metric is here."""
