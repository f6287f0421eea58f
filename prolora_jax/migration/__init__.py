"""The job: two base models, adapters moved from one to the other."""
