import sys
from pathlib import Path

from ayni import Site
from ayni_export import export_site

invitation, home, images, bundle = sys.argv[1:]

site = Site.join(invitation, home)
model = site.train(images)  # a folder with labels.csv, a .npz file, or any torch Dataset
export_site(Path(home), Path(bundle))
print(f"{model.site}: held-out AUC {model.validation.auc:.3f}")
