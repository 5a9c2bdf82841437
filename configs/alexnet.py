"""The network of the paper, trained as its text says (NIPS 2012; § marks its sections).

python -m alexnet_jax.prepare --source=ilsvrc2012:DOWNLOADS --out=records/imagenet2012
python -m alexnet_jax.main --config=configs/alexnet.py --workdir=runs/alexnet

Cost: 90 epochs of 1,281,167 images, 4.35 GFLOP each: 0.5 EFLOP. The paper: five to six days on
two GTX 580. Expected: 40.7% top-1 and 18.2% top-5 error on the validation set, ten views (§6.1).
With these initial weights the loss may stay at ln(1000) for a long time; with those of
configs/alexnet_2012.py it does not.
"""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    config = ConfigDict()
    config.experiment = ConfigDict()
    config.experiment.name = "alexnet"
    config.experiment.paper = "40.7 / 18.2 (§6.1)"  # top-1 / top-5 error in %, ten views
    config.experiment.log = ""
    config.experiment.against = ""
    config.seed = 0
    config.devices = 2  # one tower on each
    config.towers_apart = True  # False: both towers on each device; the batch is split
    config.dtype = "float32"
    config.forms = "fastest"  # on GPUs: how each layer is computed; "default": without a trial
    config.profile = ""  # trace some steps: "100:110"
    config.deterministic = False
    config.batch = 128
    config.init_from = ""
    config.epochs = 90
    config.steps = 0
    config.checkpoint_every = 2000

    config.data = data = ConfigDict()
    data.source = "ilsvrc2012:PATH"
    data.records = "records/imagenet2012"
    data.size = 256
    data.resize = "area"
    data.format = "jpeg"
    data.validation = "validation"
    data.crop = 224
    data.random_crop = True
    data.mirror = True
    data.mean = "crop"  # §2: subtracted before the crop is cut
    data.order = "random"
    data.chunk = 1  # each image has a crop and a mirror of its own
    data.threads = 0
    data.lighting = ConfigDict()
    data.lighting.sigma = 0.1
    data.lighting.scale = "eigenvalue"  # §4.1: p l a, with l on [0, 1]
    data.lighting.source = "training"
    data.lighting.shrink = False

    config.model = model = ConfigDict()
    model.kind = "alexnet"
    model.classes = 1000
    model.towers = 2
    model.kernels = (96, 256, 384, 384, 256)
    model.neurons = (4096, 4096)
    model.width = 1.0
    model.cross = ("conv3", "fc6", "fc7")
    model.without = ""
    model.activation = "relu"
    model.pool_window = 3
    model.pool_stride = 2
    model.pool_over_edges = False
    model.padding = ConfigDict()
    model.dropout = 0.5
    model.dropout_before = ("fc7", "fc8")  # §4.2: the outputs of layers 6 and 7

    model.lrn = ConfigDict()  # §3.3
    model.lrn.layers = ("conv1", "conv2")
    model.lrn.size = 5
    model.lrn.k = 2.0
    model.lrn.alpha = 1e-4
    model.lrn.beta = 0.75
    model.lrn.before_activation = ()
    model.lrn_over_towers = False  # §3.5: a tower's maps are normalized by themselves
    model.lrn_after_pooling = False

    model.within_map = ConfigDict()  # the paper has none
    model.within_map.layers = ()
    model.within_map.size = 5
    model.within_map.k = 1.0
    model.within_map.alpha = 4e-5
    model.within_map.beta = 0.75
    model.within_map.before_activation = ()

    layers = ("conv1", "conv2", "conv3", "conv4", "conv5", "fc6", "fc7", "fc8")
    ones = ("conv2", "conv4", "conv5", "fc6", "fc7")
    model.std = ConfigDict(dict.fromkeys(layers, 0.01))  # §5
    model.bias = ConfigDict({layer: 1.0 if layer in ones else 0.0 for layer in layers})

    config.optim = ConfigDict()
    config.optim.momentum = 0.9
    config.optim.weight_decay = 0.0005
    config.optim.layer_decay = ConfigDict()
    config.optim.bias_rate = 1.0  # §5: one rate for all layers
    config.optim.decay_biases = True

    config.policy = ConfigDict()
    config.policy.kind = "plateau"
    config.policy.rate = 0.01
    config.policy.factor = 10.0
    config.policy.drops = 3
    config.policy.patience = 3  # our choice; the paper says only "stopped improving"
    config.policy.least_improvement = 0.001

    config.evaluate = ConfigDict()
    config.evaluate.batch = 128
    config.evaluate.ten_views_at_end = True  # §4.1
    config.evaluate.nine_views_at_end = False

    config.log = ConfigDict()
    config.log.every = 100
    config.log.layers_every = 1000
    config.log.stuck_after = 2000
    return config
