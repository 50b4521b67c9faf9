"""`cp2 convert`: somebody else's checkpoint in, one that runs start from out."""

from cp2_jax.cli import command

TEXT = """\
Convert somebody else's checkpoint to one that pretraining (Quick Tuning) and
finetuning start from.

  cp2 convert moco_v2_800ep_pretrain.pth.tar converted/moco_v2_800ep

The format is recognised; docs/checkpoints.md lists all of them. Nothing that
the file contains is run."""


def _options(made):
    command.place(made, "source", "the checkpoint: a file or a folder", kind=command.local)
    command.place(made, "output", "folder to write")
    made.add_argument("--format", metavar="F", help="the source's format, if it is not to be recognised")
    made.add_argument(
        "--heads", metavar="N", type=command.whole(1), help="attention heads of a ViT, where the format does not tell"
    )
    made.add_argument(
        "--stage-sizes", metavar="N,N,N,N", type=_numbers, help="allow a ResNet of these numbers of blocks, e.g. 1,1,1,1"
    )
    made.add_argument(
        "--input", choices=["imagenet", "half", "unit"], help="input normalisation, if the format is wrong about it"
    )
    made.add_argument(
        "--prefix", metavar="P", default="", help="what the names of the network's tensors begin with, e.g. model."
    )
    made.add_argument(
        "--config-text",
        choices=["read", "ignore"],
        default="read",
        help="what an OpenMMLab file says of its network (read)",
    )


def _numbers(text):
    return tuple(int(part) for part in text.split(","))


_numbers.__name__ = "list of numbers, such as 3,4,6,3,"


def _run(arguments):
    from cp2_jax.interface import converting

    report = converting.convert_checkpoint(
        arguments.source,
        arguments.output,
        format=arguments.format,
        heads=arguments.heads,
        stage_sizes=arguments.stage_sizes,
        input=arguments.input,
        prefix=arguments.prefix,
        config_text=arguments.config_text,
    )
    print(f"{report}\n\nwritten to {arguments.output}")
    print(f"next: cp2 pretrain IMAGES WORKDIR --checkpoint {arguments.output}")


COMMAND = command.Command(TEXT, _options, _run)
