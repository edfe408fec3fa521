"""The small net that comes with vggfeat, trained by its own trainer on rendered images.

Net A at an eighth of the width, below 6 MB in float16. From random weights it would take very long to find a way into
many classes at once, so it learns 20 of them first, 120 from there, and then 240, as the paper's deep nets start from a
shallow one; in the end it settles at a lower learning rate. The first 120 classes come in any colour; of the others
each has its usual tint and finish, so that the net does not learn to look past colour. The last step measures what it
is good for: the demo's figures with the trained net and with the same net untrained. About an hour on two idle cores.
Full run: python pipelines/small_backbone.py
Folder:   python pipelines/small_backbone.py --folder IMAGES (measures it on class folders of yours as well)
Twin:     python pipelines/small_backbone.py --twin
"""

from vggfeat.bundle import SmallNet, Stage, make_small_net
from vggfeat.synthetic import Settings

EVERY_STAGE = "--net A --width 0.125 --scale 256 --batch 32 --dropout 0 --precision bf16"
FEW = Settings(image_side=341, classes=20, train=400, val=400)
MANY = Settings(image_side=341, classes=120, train=200, val=1200)
ALL = Settings(image_side=341, classes=240, train=150, val=1200)

NET = SmallNet(
    seed=0,
    stages=(
        Stage(name="few", images=FEW, training=f"{EVERY_STAGE} --steps 2938 --lr 0.003 --validate-every 500"),
        Stage(name="many", images=MANY, training=f"{EVERY_STAGE} --steps 5400 --lr 0.002 --validate-every 1000"),
        Stage(name="all", images=ALL, training=f"{EVERY_STAGE} --steps 6750 --lr 0.002 --validate-every 1125"),
        Stage(name="settled", images=ALL, training=f"{EVERY_STAGE} --steps 1800 --lr 0.0003 --validate-every 600"),
    ),
)

if __name__ == "__main__":
    make_small_net(NET)
