"""A job's life on one host, from its claim to its terminal status. Knows no Celery."""
