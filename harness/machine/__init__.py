"""What this machine is: its set-up, its fingerprint. Shared by runs and by ``harness doctor``; nothing is measured."""
