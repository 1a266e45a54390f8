"""Several processes that train one model: one decision on all of them, without a wait that could last for ever."""
