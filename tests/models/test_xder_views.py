"""X-DER's preparation of future heads against a plain loop over images, views and heads, as published."""

import math

import pytest
import torch
import torch.nn.functional as F

from tests.models.helpers import experiment, first_batch


@pytest.mark.parametrize("n_views", [1, 3])
def test_every_image_weighs_once_however_many_views(n_views):
    exp = experiment(
        "xder", "--buffer_size", "60", "--alpha", "0.3", "--beta", "0.7", "--simclr_num_aug", str(n_views),
        "--simclr_temp", "0.5", "--backbone", "mnistmlp",
    )  # fmt: skip
    model, (_, labels, raw) = first_batch(exp)
    raw, labels = raw[:5], labels[:5]
    model.transform = lambda images: images.float() / 16 + 0.1 * torch.arange(len(images)).view(-1, 1, 1, 1)
    found = model.consistency(raw, labels)
    with torch.no_grad():
        logits = model.net(model.transform(raw.repeat_interleave(n_views, 0))).view(5, n_views, 10)
    heads = []
    for head in range(1, 5):
        v = F.normalize(logits[:, :, 2 * head : 2 * head + 2], dim=2)
        images = []
        for i in range(5):
            views = []
            for a in range(n_views):
                others = [(j, b) for j in range(5) for b in range(n_views) if (j, b) != (i, a)]
                e = {o: math.exp(v[i, a] @ v[o] / 0.5) for o in others}
                partners = [o for o in others if labels[o[0]] == labels[i]]
                views.append(-sum(math.log(e[p] / sum(e.values())) for p in partners) / max(len(partners), 1))
            images.append(sum(views) / n_views)  # the mean over the views of an image, not their sum
        heads.append(sum(images) / 5)
    assert found.item() == pytest.approx(sum(heads) / 4, rel=1e-4)
