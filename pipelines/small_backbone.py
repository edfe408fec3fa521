"""The small net that comes with vggfeat, trained by its own trainer on rendered pictures.

Net A at an eighth of the width, below 6 MB in float16. From random weights it would take very long to find a way into
240 classes at once, so it learns 20 of them first, and the others from there, as the paper's deep nets start from a
shallow one. The last step measures what it is good for: the demo's figures with the trained net and with the same net
untrained.
Full run: python pipelines/small_backbone.py
Folder:   python pipelines/small_backbone.py --folder PICTURES (measures it on class folders of yours as well)
Twin:     python pipelines/small_backbone.py --twin
"""

from vggfeat.bundle import SmallNet, Stage, make_small_net
from vggfeat.synthetic import Settings

NET = SmallNet(
    seed=0,
    stages=(
        Stage(
            name="first-classes",
            pictures=Settings(picture_side=341, classes=20, train=400, val=400),
            training="--net A --width 0.125 --scale 256 --batch 32 --steps 5000 --lr 0.003 --dropout 0"
            " --precision bf16 --validate-every 500",
        ),
        Stage(
            name="all-classes",
            pictures=Settings(picture_side=341, classes=240, train=200, val=1200),
            training="--net A --width 0.125 --scale 256 --batch 32 --steps 25000 --lr 0.003 --dropout 0.1"
            " --precision bf16 --validate-every 1000 --patience 2 --drops 2",
        ),
    ),
)

if __name__ == "__main__":
    make_small_net(NET)
