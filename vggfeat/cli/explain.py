"""`vggfeat explain`: an image and a model in, where the score comes from out."""

from pathlib import Path

import click

from vggfeat.cli.options import PATH, make_folder, net_files
from vggfeat.cli.output import say, say_json, say_lines


@click.command()
@click.argument("image", type=PATH, metavar="IMAGE")
@click.option("--model", type=PATH, required=True, metavar="RUN|model.safetensors",
              help="A model of `vggfeat svm`, or the folder of a run with its model.safetensors.")  # fmt: skip
@click.option("--class", "name", metavar="NAME", help="Whose score is explained. [the highest]")
@click.option("--weights", multiple=True, metavar="FILE|NAME|small|random:NET:SEED:WIDTH",
              help="The net of the features, once for each. [by SHA-256, in weights/]")  # fmt: skip
@click.option("--device", help="cpu, cuda, cuda:1, ..., mps [a CUDA GPU if there is one]")
@click.option("--out", type=PATH, metavar="FILE.png", help="The drawing. [IMAGE.evidence.png, here]")
@click.option("--overwrite", is_flag=True, help="Replace an existing file.")
@click.option("--json", "as_json", is_flag=True, help="Print the sums of every scale and class as JSON.")
def explain(
    image: Path,
    model: Path,
    name: str | None,
    weights: tuple[str, ...],
    device: str | None,
    out: Path | None,
    overwrite: bool,
    as_json: bool,
) -> None:
    """Draw where in an image the score of a class comes from.

    A linear SVM on averages over an image is a sum over its positions: what each adds is exact, and with the intercept
    the sum is the score. The drawing is orange where the image speaks for the class and blue where against it.

    \b
    Examples:
      vggfeat explain holiday.jpg --model voc2007.svm
      vggfeat explain holiday.jpg --model voc2007.svm --class dog --weights D.safetensors --out dog.png
    """
    from vggfeat.explain import explain as explain_image
    from vggfeat.protocols.apply import find_model
    from vggfeat.results.evidence import evidence_json, evidence_text, overlay
    from vggfeat.results.record import write_file
    from vggfeat.runtime.devices import default_device
    from vggfeat.runtime.targets import check_target

    chosen = find_model(model)
    out = out or Path(f"{image.stem}.evidence.png")
    target = check_target(out, inputs=[image, model, chosen, *net_files(*weights)], overwrite=overwrite)
    make_folder(target.parent)
    found = explain_image(image, chosen, name=name, weights=weights, device=device or default_device())
    content = evidence_json(found, str(image), str(chosen))
    write_file(target, overlay(found))
    if as_json:
        say_json({**content, "drawing": str(target)})
        return
    say_lines(evidence_text(content))
    say(str(out))
