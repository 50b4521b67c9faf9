"""ADE20K (20,210 / 2,000 images, 150 classes) from a CP2 model: crops of 512, batch 16, 80,000 steps (paper, section 4.1).

    cp2 finetune --config finetune_ade20k --workdir runs/ade20k \
        --config.data.path=/data/ADEChallengeData2016 --config.init.checkpoint=runs/cp2_r50_aspp

Expected: 40.5 mIoU on the validation set after 200 epochs of pretraining (Table 1, row CP2, ResNet-50). Reads images and
annotations (training, validation) of ADEChallengeData2016 as downloaded, where 0 is "other": it is ignored, and classes
1-150 become labels 0-149.
"""

from cp2_jax.configs import finetune_voc

CLASSES = tuple(
    " ".join(name.split())
    for name in """
wall, building, sky, floor, tree, ceiling, road, bed, windowpane, grass, cabinet, sidewalk, person, earth, door,
table, mountain, plant, curtain, chair, car, water, painting, sofa, shelf, house, sea, mirror, rug, field, armchair,
seat, fence, desk, rock, wardrobe, lamp, bathtub, railing, cushion, base, box, column, signboard, chest of drawers,
counter, sand, sink, skyscraper, fireplace, refrigerator, grandstand, path, stairs, runway, case, pool table, pillow,
screen door, stairway, river, bridge, bookcase, blind, coffee table, toilet, flower, book, hill, bench, countertop,
stove, palm, kitchen island, computer, swivel chair, boat, bar, arcade machine, hovel, bus, towel, light, truck,
tower, chandelier, awning, streetlight, booth, television receiver, airplane, dirt track, apparel, pole, land,
bannister, escalator, ottoman, bottle, buffet, poster, stage, van, ship, fountain, conveyer belt, canopy, washer,
plaything, swimming pool, stool, barrel, basket, waterfall, tent, bag, minibike, cradle, oven, ball, food, step, tank,
trade name, microwave, pot, animal, bicycle, lake, dishwasher, screen, blanket, sculpture, hood, sconce, vase, traffic
light, tray, ashcan, fan, pier, crt screen, plate, monitor, bulletin board, shower, radiator, glass, clock, flag
""".split(",")
)


def get_config(variants: str = ""):
    """Return the config; see `finetune_voc.with_variants`."""
    config = finetune_voc.get_config()
    config.steps = 80_000
    config.data.images = "images"
    config.data.labels = "annotations"
    config.data.split = "training"
    config.data.eval_split = "validation"
    config.data.num_classes = len(CLASSES)
    config.data.class_names = CLASSES
    config.data.label_map = ((0, 255), *((value, value - 1) for value in range(1, len(CLASSES) + 1)))
    config.model.num_classes = len(CLASSES)
    config.optimizer.learning_rate = 0.01
    config.eval_every = 8000
    return finetune_voc.with_variants(config, variants)
