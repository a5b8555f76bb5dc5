import sys, time, itertools
import bench.gpu
import torch
from xverse_kernels import reference as R
from xverse_kernels.packing import *
from xverse_kernels.triton import linear, experts as X, attention as A
from xverse_kernels.triton import tiles as TL
from xverse_kernels.triton.launch import Workspace
from xverse_kernels.triton.tiles import *
from xverse_kernels.types import *
from bench.gpu.random_weights import *
from bench.gpu.timing import *
what=sys.argv[1:]
torch.manual_seed(0)
H,I,E,S,K=2560,1728,64,2,6
bw=read_bandwidth(); print('bandwidth GB/s',bw/1e9, 'matmul TF', matmul_rate()/1e12, torch.cuda.get_device_name(), flush=True)
ws=Workspace(torch.device('cuda')); ws.partials(1<<24)
def err(a,b): return float((a.double().cpu()-b.double().cpu()).norm()/b.double().cpu().norm())
def routed(T,gen=None):
    x=torch.randn(T,H,device='cuda',dtype=torch.bfloat16)
    ids=torch.stack([torch.randperm(E,device='cuda')[:K] for _ in range(T)]).int() if T<=64 else torch.rand(T,E,device='cuda').topk(K).indices.int()
    ids=torch.cat((ids,torch.arange(E,E+S,device='cuda',dtype=torch.int32).expand(T,S)),1).contiguous()
    w=torch.rand(T,K+S,device='cuda').bfloat16()
    return RoutedTokens(x,w,ids,x[:, :E].float())
BF=torch.bfloat16
def report(name,us,bytes_,flops=0):
    print(f'{name:60s} {us:9.2f} us {bytes_/us/1e3:8.0f} GB/s {bytes_/us*1e6/bw:6.1%}' + (f' {flops/us/1e6:7.1f} TF' if flops else ''),flush=True)
def attempt(name,fn):
    try: return fn()
    except Exception as e: print(name,'FAILED',repr(e)[:300],flush=True)
if 'experts' in what:
  for form in (BF16,INT8,INT4):
    L=ExpertLayout(H,I,form)
    layers=[random_experts(E+S,L,BF,'cuda') for _ in range(2)]
    # parity
    r=routed(3); res=torch.randn(3,H,device='cuda',dtype=BF)
    used=sorted(set(r.expert_ids.flatten().tolist()))
    cpu={e:L.unpack(layers[0].blocks[e].cpu(),torch.float32) for e in used}
    ref=res.double().cpu()
    for t in range(3):
        for s in range(8):
            e=int(r.expert_ids[t,s]); ref[t]+=float(r.weights[t,s])*R.swiglu(r.normed[t:t+1].cpu().float(),cpu[e])[0].double()
    o=X.down_each(X.gate_up_each(r,layers[0]),r,layers[0],res,ws)
    g=X.experts_grouped(r,layers[0],res)
    print(form.name,'parity each',err(o,ref),'grouped',err(g,ref),'minus residual',err(o-res,ref-res.double().cpu()),err(g-res,ref-res.double().cpu()),flush=True)
    rs=[routed(1) for _ in range(8)]
    pairs=list(itertools.product(layers,rs))
    hs=torch.randn(8,I,device='cuda',dtype=BF); res=torch.randn(1,H,device='cuda',dtype=BF)
    gt=[(1,1024,4),(2,512,2),(2,1024,4),(4,512,2),(4,1024,4),(4,256,1),(8,512,2)] if form is BF16 else [(16,64,4),(16,32,2),(16,128,8),(16,128,4)]
    for rows,block,warps in gt:
        t=GemvTile(rows,block,warps)
        us=attempt('gu',lambda: microseconds([(lambda l=l,r=r: X.gate_up_each(r,l,tile=t)) for l,r in pairs]))
        if us: report(f'gate_up {form.name} {rows},{block},{warps}',us,8*L.gate_up_bytes)
    dt=[(2,512,2,1),(4,512,2,1),(4,256,1,1),(8,512,2,1),(4,1024,4,1),(8,512,2,2),(8,256,1,2)] if form is BF16 else [(16,64,4,2),(16,64,4,4),(16,64,4,8),(16,32,2,8),(16,32,2,4),(16,128,8,2),(16,128,8,4)]
    for rows,block,warps,sp in dt:
        t=GemvTile(rows,block,warps,sp)
        us=attempt('dn',lambda: microseconds([(lambda l=l,r=r: X.down_each(hs,r,l,res,ws,tile=t)) for l,r in pairs]))
        if us: report(f'down {form.name} {rows},{block},{warps},{sp}',us,8*L.down_bytes)
    for pdl in (False,True):
        def both(l,r): X.down_each(X.gate_up_each(r,l,pdl=pdl),r,l,res,ws,pdl=pdl)
        us=attempt('both',lambda: microseconds([(lambda l=l,r=r: both(l,r)) for l,r in pairs]))
        if us: report(f'moe T=1 {form.name} pdl={pdl}',us,8*L.block_bytes)
    for T in (2,4,8,16,64,512,4096):
        rs=[routed(T) for _ in range(2)]; pr=list(itertools.product(layers,rs)); res=torch.randn(T,H,device='cuda',dtype=BF)
        distinct=len(set(rs[0].expert_ids.flatten().tolist()))
        fl=T*8*6*H*I
        if T<=16:
            us=attempt('e',lambda: microseconds([(lambda l=l,r=r: X.down_each(X.gate_up_each(r,l),r,l,res,ws)) for l,r in pr]))
            if us: report(f'each T={T} {form.name}',us,distinct*L.block_bytes,fl)
        us=attempt('g',lambda: microseconds([(lambda l=l,r=r: X.experts_grouped(r,l,res)) for l,r in pr]))
        if us: report(f'grouped T={T} {form.name}',us,distinct*L.block_bytes,fl)
    del layers
if 'linear' in what:
  for form in (BF16,INT8,INT4):
    for rows,cols,name in ((7680,H,'qkv'),(H,H,'o'),(100534,H,'head')):
        n=max(2,int(4e8/form.matrix_bytes(rows,cols)))
        ms=[random_packed(rows,cols,form,'cuda') for _ in range(min(n,12))]
        x=torch.randn(1,H,device='cuda',dtype=BF); nw=torch.ones(H,device='cuda',dtype=BF)
        tiles=[(2,512,2,1),(4,512,2,1),(8,512,2,1),(4,256,1,1),(2,1024,4,1)] if form is BF16 else [(16,64,4,1),(16,32,2,1),(16,128,8,1),(16,64,4,2),(16,64,4,4),(16,128,4,1)]
        for rr,b,w,sp in tiles:
            t=GemvTile(rr,b,w,sp)
            norm=nw if name!='o' else None
            us=attempt('l',lambda: microseconds([(lambda m=m: linear.gemv(x,m,ws,norm=norm,eps=1e-6,tile=t)) for m in ms]))
            if us: report(f'{name} {form.name} {rr},{b},{w},{sp}',us,form.matrix_bytes(rows,cols))
        del ms
if 'small' in what:
  x=torch.randn(1,H,device='cuda',dtype=BF); nw=torch.ones(H,device='cuda',dtype=BF)
  rw=[torch.randn(E,H,device='cuda') for _ in range(8)]
  for te,w in ((1,4),(2,4),(4,4),(1,8),(2,8)):
    X.ROUTER_EXPERTS=te; X.ROUTER_WARPS=w
    us=attempt('r',lambda: microseconds([(lambda m=m: X.route(x,nw,1e-6,m,K,S,ws)) for m in rw]*4))
    if us: report(f'router tile {te} warps {w}',us,E*H*4)
  caps=8192+16
  k=[torch.randn(1,32,caps,80,device='cuda',dtype=BF) for _ in range(8)]; v=[torch.randn(1,32,caps,80,device='cuda',dtype=BF) for _ in range(8)]
  cos=torch.randn(caps,80,device='cuda'); sin=torch.randn(caps,80,device='cuda')
  qkv=torch.randn(1,7680,device='cuda',dtype=BF); seq=torch.zeros(1,device='cuda',dtype=torch.int32)
  for L in (128,1024,8192):
    pos=torch.tensor([L],device='cuda',dtype=torch.int32)
    for blk,w,sp in itertools.product((16,32,64),(2,4),(1,4,8,16,32)):
      if sp>max(1,L//64): continue
      A.ATTENTION_BLOCK=blk; A.ATTENTION_WARPS=w
      us=attempt('a',lambda: microseconds([(lambda a=a,b=b: A.attend_each(qkv,cos,sin,a,b,pos,seq,ws,splits=sp)) for a,b in zip(k,v)]))
      if us: report(f'attention L={L} block {blk} warps {w} splits {sp}',us,L*32*80*4)
