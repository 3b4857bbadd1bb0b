"""Bundles: tar archives that install the appliance and its models on a machine without a network.

    appliance-<version>-<cpu or gpu>-<date>-<time>/
        install, serve       the scripts to run there
        bundle.conf          platform and Python for which the bundle was made
        uv, python.tar       the installer of packages, and a Python (optional)
        requirements.lock    names and hashes of the packages
        wheels/              the packages, and the appliance itself
        environments/        packages of environments of models (key `environment` of models.yaml)
        config/              models.yaml, models.d/ and readme files; `install` copies them beside the scripts
        local/               weights of models whose source is a path
        weights/             other weights, as in the data folder
        catalogue.yaml       catalogue that APPLIANCE_CATALOGUE or models.yaml named
        licences.json        licences of models and packages
        SHA256SUMS           checksums of all other files

``create`` makes a bundle. ``place`` runs on the other machine, after ``install`` has installed the packages.
"""

from __future__ import annotations
