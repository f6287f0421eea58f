"""`python -m prolora_jax` is `prolora`."""

from prolora_jax.cli.main import main

if __name__ == "__main__":
    main()
