"""``python -m realmem`` is the command ``realmem``."""

from realmem.cli import main

if __name__ == "__main__":
    main(prog_name="realmem")
