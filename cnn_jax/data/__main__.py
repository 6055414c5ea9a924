"""`python -m cnn_jax.data` lists the data sets; `python -m cnn_jax.data prepare NAME` prepares one."""

import argparse
import sys

from cnn_jax import data
from cnn_jax.errors import InputError


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m cnn_jax.data", description="Data sets.")
    commands = parser.add_subparsers(dest="command")
    prepare = commands.add_parser(
        "prepare", help="make mnist, fashion_mnist, cifar10 or cifar100 ready, without TensorFlow"
    )
    prepare.add_argument("name")
    prepare.add_argument("--files", help="folder with the files as published; without it they are downloaded")
    prepare.add_argument("--data-dir", help="where to keep it (default: $TFDS_DATA_DIR, or ~/tensorflow_datasets)")
    arguments = parser.parse_args()
    try:
        if arguments.command == "prepare":
            print(data.prepare(arguments.name, data_dir=arguments.data_dir, files=arguments.files))
        else:
            print("\n".join(data.names()))
    except InputError as error:
        print(error, file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
