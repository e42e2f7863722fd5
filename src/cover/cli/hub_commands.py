"""Commands of the Hugging Face Hub: push, pull."""

from __future__ import annotations

from argparse import Namespace
from pathlib import Path

from cover.cli.command import argument, checkpoint, command, say_next
from cover.errors import UserError


@command(
    "push",
    "upload a release with its model card, or its page as a Space, to the Hugging Face Hub",
    "cover push runs/cotrain me/cotrain --licence apache-2.0\n  cover push runs/cotrain me/cotrain-page --space",
    checkpoint("checkpoint"),
    argument("repo", metavar="REPO", help="owner/name on the Hub; it is created if it does not exist"),
    argument("--private", action="store_true", help="only you can see a new repository"),
    argument(
        "--licence", metavar="ID", default="", help="licence of the weights as the Hub spells it, as in cc-by-nc-4.0"
    ),
    argument(
        "--results",
        type=Path,
        metavar="FILE",
        help="results of cover evaluate --json for the card (default: those in the run's folder)",
    ),
    argument(
        "--replace-card", action="store_true", help="write a new README.md, even where someone has changed the old one"
    ),
    argument("--space", action="store_true", help="push a Space that serves the page of the model"),
    argument("--message", metavar="TEXT", default="", help="message of the commit"),
    argument("--dry-run", action="store_true", help="print the card and the files, and push nothing"),
)
def push(args: Namespace) -> int:
    from cover.experiments.publish import PushRequest, push

    if args.space and (args.licence or args.results):
        raise UserError(f"--space: cannot go with {'--licence' if args.licence else '--results'}; push the model too")
    request = PushRequest(
        args.checkpoint,
        args.repo,
        args.private,
        args.message,
        args.licence,
        args.results,
        args.replace_card,
        args.space,
        args.dry_run,
    )
    address = push(request)
    if address:
        print(address)
        if not args.space:
            say_next("pull", args.repo)
    return 0


@command(
    "pull",
    "download a release from the Hugging Face Hub",
    "cover pull me/cotrain --out cotrain",
    argument("repo", metavar="REPO", help="owner/name on the Hub"),
    argument("--out", type=Path, metavar="DIR", help="folder for the release (default: the Hub's cache)"),
    argument("--revision", metavar="NAME", help="a branch, tag or commit (default: the newest)"),
)
def pull(args: Namespace) -> int:
    from cover.model.release import pull

    folder = pull(args.repo, args.out, args.revision)
    print(folder)
    say_next("predict", folder, "clip.mp4")
    return 0
