"""What `from torch import *` and its like bind: the names that torch's modules export, as far as code uses them.

A table, since torch is not imported here; a test compares it with the torch that is installed.
"""

from __future__ import annotations

EXPORTED: dict[str, list[str]] = {
    "torch": (
        "BoolTensor ByteTensor CharTensor DoubleTensor FloatTensor Generator IntTensor LongTensor ShortTensor Size Tensor abs abs_ "
        "absolute acos acos_ acosh acosh_ adaptive_avg_pool1d adaptive_max_pool1d add addbmm addcdiv addcmul addmm addmv addmv_ addr "
        "adjoint all allclose alpha_dropout alpha_dropout_ amax amin aminmax angle any arange arccos arccos_ arccosh arccosh_ arcsin "
        "arcsin_ arcsinh arcsinh_ arctan arctan2 arctan_ arctanh arctanh_ argmax argmin argsort argwhere as_strided as_strided_ "
        "as_tensor asarray asin asin_ asinh asinh_ atan atan2 atan_ atanh atanh_ atleast_1d atleast_2d atleast_3d avg_pool1d baddbmm "
        "bartlett_window batch_norm bernoulli bfloat16 bilinear binary_cross_entropy_with_logits bincount blackman_window block_diag "
        "bmm bool broadcast_tensors broadcast_to bucketize cartesian_prod cat cdist cdouble ceil ceil_ celu celu_ cfloat chain_matmul "
        "chalf channel_shuffle cholesky cholesky_inverse cholesky_solve chunk clamp clamp_ clamp_max clamp_max_ clamp_min clamp_min_ "
        "clip clip_ clone column_stack combinations complex complex128 complex32 complex64 concat concatenate conj conj_physical "
        "conj_physical_ conv1d conv2d conv3d conv_transpose1d conv_transpose2d conv_transpose3d copysign corrcoef cos cos_ cosh cosh_ "
        "cosine_embedding_loss cosine_similarity count_nonzero cov cross ctc_loss cummax cummin cumprod cumsum cumulative_trapezoid "
        "deg2rad deg2rad_ dequantize det detach detach_ device diag diag_embed diagflat diagonal diff digamma dist div divide dot "
        "double dropout dropout_ dsplit dstack dtype e einsum embedding embedding_bag empty empty_like enable_grad eq equal erf erf_ "
        "erfc erfc_ erfinv exp exp2 exp2_ exp_ expm1 expm1_ eye fill_ finfo flatten flip fliplr flipud float float16 float32 float64 "
        "float_power floor floor_ floor_divide fmax fmin fmod frac frac_ frexp from_numpy frombuffer full full_like gather gcd gcd_ ge "
        "ger gradient greater greater_equal group_norm gt half hamming_window hann_window hardshrink heaviside hinge_embedding_loss "
        "histc histogram hsplit hstack hypot i0 i0_ igamma igammac iinfo imag index_add index_fill index_put index_put_ index_reduce "
        "index_select inf inference_mode inner instance_norm int int16 int32 int64 int8 inverse is_complex is_floating_point "
        "is_grad_enabled is_tensor isclose isfinite isin isinf isnan isneginf isposinf isreal istft kaiser_window kl_div kron kthvalue "
        "layer_norm layout lcm lcm_ ldexp ldexp_ le lerp less less_equal lgamma linspace load lobpcg log log10 log10_ log1p log1p_ "
        "log2 log2_ log_ log_softmax logaddexp logaddexp2 logcumsumexp logdet logical_and logical_not logical_or logical_xor logit "
        "logit_ logspace logsumexp long lt lu_solve lu_unpack manual_seed margin_ranking_loss masked_fill masked_select matmul "
        "matrix_exp matrix_power max max_pool1d max_pool2d max_pool3d maximum mean median meshgrid min minimum mm mode moveaxis "
        "movedim msort mul multinomial multiply mv mvlgamma nan nan_to_num nan_to_num_ nanmean nanmedian nanquantile nansum narrow ne "
        "neg neg_ negative negative_ newaxis nextafter no_grad nonzero norm normal not_equal numel ones ones_like orgqr ormqr outer "
        "pairwise_distance pdist permute pi pinverse pixel_shuffle pixel_unshuffle poisson poisson_nll_loss polar polygamma positive "
        "pow prelu prod qr quantile rad2deg rad2deg_ rand rand_like randint randint_like randn randn_like randperm range ravel real "
        "reciprocal reciprocal_ relu relu_ remainder renorm repeat_interleave reshape rms_norm roll rot90 round round_ row_stack rrelu "
        "rrelu_ rsqrt rsqrt_ rsub save scalar_tensor scatter scatter_add scatter_reduce searchsorted select selu selu_ sgn short "
        "sigmoid sigmoid_ sign signbit sin sin_ sinc sinc_ sinh sinh_ slogdet softmax sort split sqrt sqrt_ square square_ squeeze "
        "stack std std_mean stft sub subtract sum svd swapaxes swapdims t take take_along_dim tan tan_ tanh tanh_ tensor tensor_split "
        "tensordot threshold threshold_ tile topk trace transpose trapezoid trapz triangular_solve tril tril_indices "
        "triplet_margin_loss triu triu_indices true_divide trunc trunc_ typename uint8 unbind unflatten unique_consecutive "
        "unravel_index unsqueeze vander var var_mean vdot view_as_complex view_as_real vsplit vstack where xlogy xlogy_ zero_ zeros "
        "zeros_like"
    ).split(),
    "torch.nn": (
        "AdaptiveAvgPool1d AdaptiveAvgPool2d AdaptiveAvgPool3d AdaptiveLogSoftmaxWithLoss AdaptiveMaxPool1d AdaptiveMaxPool2d "
        "AdaptiveMaxPool3d AlphaDropout AvgPool1d AvgPool2d AvgPool3d BCELoss BCEWithLogitsLoss BatchNorm1d BatchNorm2d BatchNorm3d "
        "Bilinear CELU CTCLoss ChannelShuffle CircularPad1d CircularPad2d CircularPad3d ConstantPad1d ConstantPad2d ConstantPad3d "
        "Conv1d Conv2d Conv3d ConvTranspose1d ConvTranspose2d ConvTranspose3d CosineEmbeddingLoss CosineSimilarity CrossEntropyLoss "
        "DataParallel Dropout Dropout1d Dropout2d Dropout3d ELU Embedding EmbeddingBag FeatureAlphaDropout Flatten Fold "
        "FractionalMaxPool2d FractionalMaxPool3d GELU GLU GRU GRUCell GaussianNLLLoss GroupNorm Hardshrink Hardsigmoid Hardswish "
        "Hardtanh HingeEmbeddingLoss HuberLoss Identity InstanceNorm1d InstanceNorm2d InstanceNorm3d KLDivLoss L1Loss LPPool1d "
        "LPPool2d LPPool3d LSTM LSTMCell LayerNorm LeakyReLU Linear LocalResponseNorm LogSigmoid LogSoftmax MSELoss MarginRankingLoss "
        "MaxPool1d MaxPool2d MaxPool3d MaxUnpool1d MaxUnpool2d MaxUnpool3d Mish Module ModuleDict ModuleList MultiLabelMarginLoss "
        "MultiLabelSoftMarginLoss MultiMarginLoss MultiheadAttention NLLLoss PReLU PairwiseDistance Parameter ParameterDict "
        "ParameterList PixelShuffle PixelUnshuffle PoissonNLLLoss RMSNorm RNN RNNCell RReLU ReLU ReLU6 ReflectionPad1d ReflectionPad2d "
        "ReflectionPad3d ReplicationPad1d ReplicationPad2d ReplicationPad3d SELU Sequential SiLU Sigmoid SmoothL1Loss SoftMarginLoss "
        "Softmax Softmax2d Softmin Softplus Softshrink Softsign SyncBatchNorm Tanh Tanhshrink Threshold Transformer TransformerDecoder "
        "TransformerDecoderLayer TransformerEncoder TransformerEncoderLayer TripletMarginLoss TripletMarginWithDistanceLoss Unflatten "
        "Unfold Upsample UpsamplingBilinear2d UpsamplingNearest2d ZeroPad1d ZeroPad2d ZeroPad3d"
    ).split(),
    "torch.nn.functional": (
        "adaptive_avg_pool1d adaptive_avg_pool2d adaptive_avg_pool3d adaptive_max_pool1d adaptive_max_pool2d adaptive_max_pool3d "
        "affine_grid alpha_dropout avg_pool1d avg_pool2d avg_pool3d batch_norm bilinear binary_cross_entropy "
        "binary_cross_entropy_with_logits celu celu_ channel_shuffle conv1d conv2d conv3d conv_transpose1d conv_transpose2d "
        "conv_transpose3d cosine_embedding_loss cosine_similarity cross_entropy ctc_loss dropout dropout1d dropout2d dropout3d elu "
        "elu_ embedding embedding_bag fold fractional_max_pool2d fractional_max_pool3d gaussian_nll_loss gelu glu grid_sample "
        "group_norm gumbel_softmax hardshrink hardsigmoid hardswish hardtanh hardtanh_ hinge_embedding_loss huber_loss instance_norm "
        "interpolate kl_div l1_loss layer_norm leaky_relu leaky_relu_ linear local_response_norm log_softmax logsigmoid lp_pool1d "
        "lp_pool2d lp_pool3d margin_ranking_loss max_pool1d max_pool2d max_pool3d max_unpool1d max_unpool2d max_unpool3d mish mse_loss "
        "multi_head_attention_forward multi_margin_loss multilabel_margin_loss multilabel_soft_margin_loss nll_loss normalize one_hot "
        "pad pairwise_distance pdist pixel_shuffle pixel_unshuffle poisson_nll_loss prelu relu relu6 relu_ rms_norm rrelu rrelu_ "
        "scaled_dot_product_attention selu selu_ sigmoid silu smooth_l1_loss soft_margin_loss softmax softmin softplus softshrink "
        "softsign tanh tanhshrink threshold threshold_ triplet_margin_loss triplet_margin_with_distance_loss unfold upsample "
        "upsample_bilinear upsample_nearest"
    ).split(),
    "torch.nn.init": (
        "calculate_gain constant constant_ dirac dirac_ eye eye_ kaiming_normal kaiming_normal_ kaiming_uniform kaiming_uniform_ "
        "normal normal_ ones_ orthogonal orthogonal_ sparse trunc_normal_ uniform uniform_ xavier_normal xavier_normal_ xavier_uniform "
        "xavier_uniform_ zeros_"
    ).split(),
    "torch.optim": ("ASGD Adadelta Adafactor Adagrad Adam AdamW Adamax LBFGS NAdam Optimizer RAdam RMSprop Rprop SGD SparseAdam").split(),
    "torch.distributions": (
        "AbsTransform AffineTransform Bernoulli Beta Binomial CatTransform Categorical Cauchy Chi2 ComposeTransform "
        "ContinuousBernoulli CorrCholeskyTransform CumulativeDistributionTransform Dirichlet Distribution ExpTransform Exponential "
        "ExponentialFamily FisherSnedecor Gamma GeneralizedPareto Geometric Gumbel HalfCauchy HalfNormal Independent "
        "IndependentTransform InverseGamma Kumaraswamy LKJCholesky Laplace LogNormal LogisticNormal LowRankMultivariateNormal "
        "LowerCholeskyTransform MixtureSameFamily Multinomial MultivariateNormal NegativeBinomial Normal OneHotCategorical "
        "OneHotCategoricalStraightThrough Pareto Poisson PositiveDefiniteTransform PowerTransform RelaxedBernoulli "
        "RelaxedOneHotCategorical ReshapeTransform SigmoidTransform SoftmaxTransform SoftplusTransform StackTransform "
        "StickBreakingTransform StudentT TanhTransform Transform TransformedDistribution Uniform VonMises Weibull Wishart biject_to "
        "identity_transform kl_divergence register_kl transform_to"
    ).split(),
    "torch.autograd": ("Function Variable backward detect_anomaly enable_grad grad gradcheck gradgradcheck inference_mode no_grad").split(),
}
"""Module to the names that a star import of it binds; a later star import of the same name wins, as in Python."""
