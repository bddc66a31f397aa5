"""How far scenarios see each other while some are new.

Letters: M scenarios.
"""

import torch
from torch import Tensor


def foreign_admission(share_M: Tensor, donor_M: Tensor) -> Tensor:
    """Returns rho, [M, M]: how far scenario i's rows see scenario j, from 0 to 1; nobody sees itself as another.

    A column is its scenario's share: 0 when it is added, 1 when it is open. Of the scenarios before it one sees what
    its donor sees (`donor_M`, -1: none), and of the donor, who does not see itself, its own share: at first its row is
    the donor's with itself in the donor's place, and every entry follows one share.

    >>> foreign_admission(torch.tensor([1.0, 1.0, 0.25]), torch.tensor([-1, -1, 1]))
    tensor([[0.0000, 1.0000, 0.2500],
            [1.0000, 0.0000, 0.2500],
            [1.0000, 0.2500, 0.0000]])
    """
    rho_MM = torch.empty(len(share_M), len(share_M)).to(share_M)
    for i, donor in enumerate(donor_M.tolist()):
        rho_MM[i] = share_M
        if donor >= 0:
            rho_MM[i, :i] = rho_MM[donor, :i]
            rho_MM[i, donor] = share_M[i]
        rho_MM[i, i] = 0.0
    return rho_MM
